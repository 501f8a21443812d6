"""Presets of many tasks at once: those of a row and a column, as papers' tables have them.

An algorithm's PRESETS apply by their names: "family", over it "family/task", over that "family/--dataset" where the
user names data, and over all "name" and "name/task" with --preset name. Flags win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def each(family: str, rows: Iterable[str], columns: Iterable[str], **values: Any) -> dict[str, dict[str, Any]]:
    """The same values for every row and column, bodies and their data sets' qualities, say: "family/row-column"."""
    columns = tuple(columns)
    return {f"{family}/{row}-{column}": dict(values) for row in rows for column in columns}


def table(
    family: str, fields: Sequence[str], columns: Sequence[str], rows: Mapping[str, Sequence[Sequence[Any]]]
) -> dict[str, dict[str, Any]]:
    """One preset per cell, "family/row-column", with the values of these `fields` of a Config.

    `rows` has the cells of each row in the order of `columns`.
    """
    return {
        f"{family}/{row}-{column}": dict(zip(fields, cell, strict=True))
        for row, cells in rows.items()
        for column, cell in zip(columns, cells, strict=True)
    }
