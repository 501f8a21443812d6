"""D4RL's scale: the returns of a random and of an expert policy for each of its data sets, frozen.

The table beside this file, d4rl_scores.csv, holds the numbers of d4rl/infos.py (Farama-Foundation/D4RL, Apache-2.0).
Other copies of the data store other reference returns; scores on one scale are not scores on the other.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from common.errors import Refused


@functools.cache
def table() -> dict[str, tuple[float, float]]:
    """Data set of D4RL's -> returns of a random and of an expert policy."""
    with Path(__file__).with_name("d4rl_scores.csv").open(newline="") as file:
        return {row["dataset"]: (float(row["random"]), float(row["expert"])) for row in csv.DictReader(file)}


def reference(dataset: str) -> tuple[float, float]:
    """The returns of a random and of an expert policy for one of D4RL's data sets, such as "hopper-medium-v2"."""
    if dataset not in table():
        raise Refused(f"D4RL has no data set {dataset!r}, and so no reference returns for it")
    return table()[dataset]


def normalised(dataset: str, returns: ArrayLike) -> Any:
    """Returns in percent: 0 is a random policy's, 100 an expert's."""
    low, high = reference(dataset)
    return 100.0 * (np.asarray(returns, float) - low)[()] / (high - low)
