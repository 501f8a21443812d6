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


@pytest.mark.parametrize("cells", [((1, 2),), ((1, 2), (3,))])
def test_a_missing_number_is_an_error(cells):
    with pytest.raises(ValueError, match="shorter"):
        presets.table("family", ("eta", "rate"), ("low", "high"), {"cat": cells})
