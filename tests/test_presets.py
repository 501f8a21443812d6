"""Presets that are a paper's table."""

import pytest

from common import presets


def test_a_cell_is_a_preset():
    made = presets.table(
        "family", ("eta", "rate"), ("low", "high"), {"cat": ((1, 2), (3, 4)), "big-dog": ((5, 6),) * 2}
    )
    assert made == {
        "family/cat-low": {"eta": 1, "rate": 2},
        "family/cat-high": {"eta": 3, "rate": 4},
        "family/big-dog-low": {"eta": 5, "rate": 6},
        "family/big-dog-high": {"eta": 5, "rate": 6},
    }


def test_every_row_and_column_has_the_same_values():
    made = presets.each("family", {"cat": 1, "dog": 2}, iter(("low", "high")), eta=3.0)
    keys = {"family/cat-low", "family/cat-high", "family/dog-low", "family/dog-high"}
    assert made == {key: {"eta": 3.0} for key in keys}
    assert len({id(values) for values in made.values()}) == 4


@pytest.mark.parametrize("cells", [((1, 2),), ((1, 2), (3,))])
def test_a_missing_number_is_an_error(cells):
    with pytest.raises(ValueError, match="shorter"):
        presets.table("family", ("eta", "rate"), ("low", "high"), {"cat": cells})
