"""Demonstrations that go two ways around one obstacle: what a policy with a single action per state makes of them.

    python -m benchmarks.studies.two_ways                 # writes runs/two-ways.npz
    python -m benchmarks.sweep two-ways                   # clones it with every policy of algorithms/bc.py
    python -m benchmarks.report runs/sweeps/two-ways --name two_ways

A point walks 2 m from one side of a disc to the other; to touch the disc is the end. The demonstrations walk up to a
place in front of it, then around it on either side, at random: there, the mean of their actions is to go straight on.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro

from benchmarks.reporting.results import write
from common.errors import Refused, exiting

IDENTIFIER = "benchmarks.studies.two_ways:TwoWays-v0"
"""What `--env` is given."""
_STRIDE = 0.05
"""m per step and unit of action."""
_RADIUS = 0.45
"""m, of the disc around the origin."""
_START, _FORK, _GOAL = np.array([-1.0, 0.0]), np.array([-0.65, 0.0]), np.array([1.0, 0.0])
_SIDES = np.array([[0.0, 0.8], [0.0, -0.8]])
_ARRIVED = 0.1
"""m from the goal, or from a waypoint."""


class TwoWays(gymnasium.Env):
    """A point [x, y] in metres moved by velocities in [-1, 1]."""

    observation_space = gymnasium.spaces.Box(-3.0, 3.0, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A place near the start."""
        super().reset(seed=seed)
        self.place = _START + self.np_random.uniform(-0.1, 0.1, 2)
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Reward 1 and the end at the goal; the end without a reward in the disc."""
        self.place = (self.place + _STRIDE * np.clip(action, -1, 1)).clip(-3, 3)
        arrived = bool(np.linalg.norm(self.place - _GOAL) < _ARRIVED)
        return self.place.copy(), float(arrived), arrived or bool(np.linalg.norm(self.place) < _RADIUS), False, {}


gymnasium.register("TwoWays-v0", entry_point=TwoWays, max_episode_steps=150)


def demonstrations(episodes: int, seed: int) -> dict[str, np.ndarray]:
    """Walks by way of the fork and a side chosen at random, in the layout of D4RL."""
    rng = np.random.default_rng(seed)
    environment = gymnasium.make("TwoWays-v0")
    rows: dict[str, list] = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for _ in range(episodes):
        place, _ = environment.reset(seed=int(rng.integers(2**31)))
        waypoints = [_FORK, _SIDES[rng.integers(2)], _GOAL]
        over = False
        while not over:
            if len(waypoints) > 1 and np.linalg.norm(place - waypoints[0]) < _ARRIVED:
                waypoints.pop(0)
            way = waypoints[0] - place
            action = (way / max(np.linalg.norm(way), _STRIDE) + rng.normal(0, 0.3, 2)).clip(-1, 1).astype(np.float32)
            following, reward, terminated, truncated, _ = environment.step(action)
            for name, value in zip(rows, (place, action, reward, terminated, truncated), strict=True):
                rows[name].append(value)
            place, over = following, terminated or truncated
    return {name: np.array(values, bool if name in ("terminals", "timeouts") else np.float32)
            for name, values in rows.items()}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """What is written."""

    out: Path = Path("runs/two-ways.npz")
    """Where to."""
    episodes: int = 500
    """Demonstrations."""
    seed: int = 0
    """Of their random numbers."""


def main(data: Data) -> None:
    """Write the demonstrations."""
    if data.episodes < 1 or data.seed < 0:
        raise Refused("--episodes must be at least 1, --seed 0 or more")
    if data.out.suffix != ".npz":
        raise Refused(f"--out {data.out}: it must be the name of an .npz file")
    rows, content = demonstrations(data.episodes, data.seed), io.BytesIO()
    np.savez(content, **rows)
    try:
        data.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--out {data.out}: {data.out.parent} cannot be made ({error.strerror})") from error
    write(data.out, content.getvalue())
    reached = int(rows["rewards"].sum())
    print(f"{data.out}: {len(rows['rewards'])} steps of {data.episodes} demonstrations, {reached} reach the goal")


if __name__ == "__main__":
    exiting("two_ways", lambda: main(tyro.cli(Data, description=__doc__)))
