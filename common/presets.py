"""Presets that are a paper's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(
    family: str, fields: Sequence[str], columns: Sequence[str], rows: Mapping[str, Sequence[Sequence[Any]]]
) -> dict[str, dict[str, Any]]:
    """One preset per cell, "family/row-column", with the values of these `fields` of a Config.

    `rows` has the cells of each row in the order of `columns`: a body and its data sets' qualities, say.
    """
    return {
        f"{family}/{row}-{column}": dict(zip(fields, cell, strict=True))
        for row, cells in rows.items()
        for column, cell in zip(columns, cells, strict=True)
    }
