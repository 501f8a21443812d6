"""Whole numbers as people write them: 1000000, 1_000_000, 1e6."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

_WAYS = "is not a whole number, such as 1000000, 1_000_000 or 1e6"
_MOST = 2**63
"""What is beyond it is no count of anything, and may be too long to write down."""


def parsed(text: str) -> int:
    """The whole number that a text says. Raises ValueError, in words, if it says none."""
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text} {_WAYS}") from error
    if not number.is_finite() or not -_MOST <= number <= _MOST or number != number.to_integral_value():
        raise ValueError(f"{text} {_WAYS}")
    return int(number)


def like(example: Any, value: Any) -> Any:
    """A value, as a count if the example is one and the value a whole number written as 1e6, which is a float."""
    counted = isinstance(example, int) and not isinstance(example, bool)
    return int(value) if counted and isinstance(value, float) and value.is_integer() else value


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _whole(information: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    if information.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: parsed(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def cli(command: Any, **keywords: Any) -> Any:
    """`tyro.cli`, with counts as people write them; a dictionary of functions is one of subcommands."""
    with _REGISTRY:
        if isinstance(command, dict):
            return tyro.extras.subcommand_cli_from_dict(command, **keywords)
        return tyro.cli(command, **keywords)
