"""The return that a policy reaches over the return that it is asked for: `python -m benchmarks.studies.returns RUN`.

    python algorithms/decision_transformer.py --env hopper-medium-replay --num-seeds 3 --out runs/asked
    python -m benchmarks.studies.returns runs/asked [--asked 0 900 1800 2700 3600] [--episodes 20] [--name NAME]

RUN is a run directory of an algorithm that has a `target_return`. All its runs play the same episodes for every return
asked for, side by side in one compiled decode; nothing is trained. Without `--asked` there are nine, from the worst
episode of the data to half its distance to the best one beyond that. The picture has the mean of every run, the line
on which the two are equal, and grey where the data's episodes lie. Rows and picture go to
benchmarks/results/returns_NAME.{csv,json,png}.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.reporting.figures import png, style
from benchmarks.reporting.results import file, publish, write
from common import checkpoints, environments, points, policies, tasks
from common.errors import Refused, exiting
from common.evaluation import Evaluator, Outcome
from common.players import Told
from common.programs import Programs
from common.resuming import began_in
from common.runs import RunDirectory


@dataclasses.dataclass(frozen=True)
class Returns:
    """What is asked for."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    asked: tuple[float, ...] = ()
    """Returns asked for."""
    episodes: int = 20
    """Of every run, for each of them."""
    name: str = "small"
    """Of the result."""


def agents_of(folder: Path, saved: dict[str, Any], sizes: tuple[int, int]) -> Any:
    """The agents of a run directory's newest checkpoint, on the host, [runs, ...]. Raises Refused."""
    if "target_return" not in saved["config"]:
        raise Refused(
            f"{folder}: {saved['algorithm']} is asked for no return; name a run of one that has target_return"
        )
    _, arrays, state = checkpoints.read(folder / policies.CHECKPOINTS, None, "agent.")
    agent = policies.skeleton(saved, tasks.find(saved["run"]["env"]), *sizes).replace(phase=state["phase"])
    arrays = {name.removeprefix("agent."): leaf for name, leaf in arrays.items()}
    return checkpoints.unflatten(agent, arrays, same_shapes=False)


def asking(agents: Any, asked: np.ndarray) -> Any:
    """The agents [runs, ...] for each of the returns asked for, [returns * runs, ...]."""
    runs = len(agents.config.target_return)
    many = jax.tree.map(lambda x: np.concatenate([x] * len(asked)), agents)
    # 0 would mean the best of the data.
    targets = np.repeat(np.where(np.asarray(asked) == 0, 1e-6, asked).astype(np.float32), runs)
    return many.replace(config=many.config.replace(target_return=targets))


def play(kind: type, agents: Any, make: Any, seeds: list[int], episodes: int) -> list[Outcome]:
    """What becomes of the episodes of agents [n, ...] with a memory, which begin as these seeds [n] say."""
    programs = Programs(kind, jax.tree.map(lambda x: x[0], agents.config), len(seeds), None, 1)
    with contextlib.closing(Evaluator(make, len(seeds), episodes, most=max(64, len(seeds)))) as evaluator:
        agents = programs.place(agents)
        memory, told = programs.room(agents, evaluator.slots), None

        def telling(latest: Told) -> None:
            nonlocal told
            told = latest

        def act(observations: np.ndarray) -> np.ndarray:
            nonlocal memory
            actions, memory = programs.proceed(memory, agents, observations, *told)
            return actions

        return evaluator(act, seeds, 0, telling=telling)


def draw(rows: list[dict[str, Any]], episodes: tuple[float, float], title: str) -> Figure:
    """Return reached over return asked for, a line per run."""
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(*episodes, color="0.9", zorder=0)
    ends = [min(row["asked"] for row in rows), max(row["asked"] for row in rows)]
    axes.plot(ends, ends, color="0.5", linewidth=1, linestyle=":")
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        mine = [row for row in rows if row["run"] == run]
        asked, means, spread = ([row[key] for row in mine] for key in ("asked", "return_mean", "return_std"))
        axes.errorbar(asked, means, spread, **style(number), elinewidth=0.8, label=f"seed {mine[0]['seed']}")
    axes.set(title=title, xlabel="return asked for", ylabel="return reached")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize="small")
    return figure


def main(study: Returns) -> None:
    """Play, print, write."""
    if study.episodes < 1:
        raise Refused("--episodes must be at least 1")
    _, saved = RunDirectory.open(study.path)
    if saved["dataset"] is None:
        raise Refused(f"{study.path}: has learnt from no data")
    with contextlib.chdir(began_in(study.path.absolute(), saved)):
        task, mean = tasks.find(saved["run"]["env"]), saved["dataset"].get("observation_mean")
        make = environments.maker_of(task, mean and len(mean))
        with contextlib.closing(make()) as environment:
            sizes = environment.observation_size, environment.action_size
    agents = agents_of(study.path, saved, sizes)
    low, *_, high = saved["dataset"]["return_quantiles"].values()
    asked = np.array(study.asked) if study.asked else np.linspace(low, high + (high - low) / 2, 9)
    seeds = [point["seed"] for point in points.of_runs(saved)]
    outcomes = play(type(agents), asking(agents, asked), make, seeds * len(asked), study.episodes)
    played = [(float(target), run) for target in asked for run in range(len(seeds))]
    rows = [
        {"task": task.name, "run": run, "seed": seeds[run], "asked": target, **outcome.row(task)}
        for (target, run), outcome in zip(played, outcomes, strict=True)
    ]
    for row in rows:
        Console().print(f"asked {row['asked']:.1f}, seed {row['seed']}: {row['return_mean']:.1f}", highlight=False)
    name = f"returns_{study.name}"
    picture = png(draw(rows, (low, high), f"{saved['algorithm']} on {task.name}"))
    publish(name, rows, "benchmarks.studies.returns", trained=saved["arguments"])
    write(file(name, ".png"), picture)


if __name__ == "__main__":
    exiting("returns", lambda: main(tyro.cli(Returns, description=__doc__)))
