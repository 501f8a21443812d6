"""From the command line to a request: presets under flags, and a grid of numbers beside them."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from common import counts, helptext, tasks
from common.errors import Refused
from common.layers import Precision


@dataclasses.dataclass(frozen=True)
class Run:
    """Arguments of a run, the same for every algorithm."""

    env: str = "pointmaze-large"
    """Task: a name from the task table, or any installed Gymnasium id."""
    dataset: str | None = None
    """Prior data: a file (.npz, .hdf5, .h5), lerobot:FOLDER, robomimic:FILE, recipe:NAME, d4rl:NAME, minari:ID,
    ogbench:NAME. Default: the task's."""
    preset: str | None = None
    """A named set of values, laid over the task family's; explicit flags win over both."""
    seed: int = 0
    """Seed of the first run."""
    num_seeds: int = 1
    """Seeds per point of the grid, counted up from `seed`, trained side by side."""
    eval_every: int = 5000
    """Steps between evaluations; a step is an update offline and an environment step online."""
    eval_episodes: int = 10
    """Episodes of each evaluation of each run."""
    eval_workers: int | None = None
    """Processes that play them; 0: none but this one. Default: one per core where there is much to play, else 0."""
    eval_async: bool = False
    """Go on learning while an evaluation is played: at the parameters of its step, by a thread or --eval-workers, and
    with the host's CPU, so that scores are the same, on an accelerator up to rounding. A phase waits for its last."""
    env_workers: int = 0
    """Processes that step the environments of all runs while they collect; 0: none but this one. The numbers are the
    same."""
    single_environment: bool = False
    """Collect and evaluate in one environment, for a robot, or what else can exist only once: of one run, one episode
    at a time. An evaluation cuts the episode that is collected, and so does a resume."""
    log_every: int = 1000
    """Steps between rows of metrics.csv."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; 0 writes none. Default: with every evaluation, for up to a twentieth of the time."""
    out: Path | None = None
    """Run directory, which must not exist yet. Default: runs/ALGORITHM/TASK/TIMESTAMP."""
    resume: Path | None = None
    """Continue the run in this directory from its newest checkpoint. Takes only --dataset beside it, for moved data."""
    width: int | None = None
    """Runs computed at once on each device. Default: all on an accelerator, 1 on a CPU."""
    precision: Precision = "default"
    """Of updates. default: matrix products as the device does them (TF32 on a recent NVIDIA GPU, float32 on a CPU);
    float32: in full; bfloat16: they and the outputs of hidden layers in bfloat16, parameters in float32."""
    devices: int | None = None
    """Devices to spread the runs over. Default: all, on a CPU one per core, but no more than there are runs."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run directory (extra: tensorboard)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra: wandb)."""
    trackio: bool = False
    """Also log to Trackio, on this machine or where its own variables say (extra: trackio)."""
    project: str | None = None
    """Project of Weights & Biases and Trackio. Default: WANDB_PROJECT for the first, else "headstart"."""
    group: str | None = None
    """Group of the run there. Default: WANDB_RUN_GROUP for the first, else none."""
    name: str | None = None
    """Name of the run there. Default: WANDB_NAME for the first, else one of the tracker's or the folder's."""

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        for name in ("num_seeds", "eval_every", "eval_episodes", "log_every", "width", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                return f"--{name.replace('_', '-')} must be at least 1, not {value}"
        for name in ("checkpoint_every", "eval_workers", "env_workers"):
            value = getattr(self, name)
            if value is not None and value < 0:
                return f"--{name.replace('_', '-')} must be 0 or more, not {value}"
        for name in ("project", "group", "name"):
            if getattr(self, name) is not None and not (self.wandb or self.trackio):
                return f"--{name} {getattr(self, name)}: names a run for --wandb or --trackio; add one of them"
        for name in ("eval_workers", "env_workers"):
            if self.single_environment and getattr(self, name):
                return f"--single-environment plays in this process: leave out --{name.replace('_', '-')}"
        if self.single_environment and self.eval_async:
            return "--single-environment: an evaluation cuts the episode that is collected; leave out --eval-async"
        if self.seed < 0 or self.seed + self.num_seeds > 2**31:
            return f"--seed must lie in 0 ... 2^31 - num_seeds, not {self.seed}"
        return None


@dataclasses.dataclass(frozen=True)
class Request:
    """What one command asks for."""

    run: Run
    config: Any
    """The algorithm's Config."""
    grid: Mapping[str, tuple[float, ...]]
    """Field of Config -> its values; the runs are their cartesian product times the seeds."""

    def points(self) -> list[dict[str, float]]:
        """The overrides of every point of the grid; one empty point without a grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def labels(self) -> list[str]:
        """The points in words, as tables and legends call them, no two alike; "" without a grid."""
        return [", ".join(f"{name}={shown(value)}" for name, value in point.items()) for point in self.points()]

    @property
    def number_of_runs(self) -> int:
        """Points of the grid times seeds."""
        return len(self.points()) * self.run.num_seeds


def shown(value: float) -> str:
    """A number in six digits, or in as many as tell it from every other."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def traced_fields(config_class: type) -> list[str]:
    """The fields of a Config that are numbers on the device, and so may vary along the axis of runs."""
    return [f.name for f in dataclasses.fields(config_class) if f.metadata.get("pytree_node", True)]


def parse(arguments: Sequence[str], name: str, description: str, config_class: type, presets: Mapping) -> Request:
    """The request of a command line. Raises Refused, or exits as tyro does, with status 2, on unknown flags."""
    usual = config_class.default_task or Run.env
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--env", default=usual)
    early.add_argument("--preset")
    early.add_argument("--dataset")
    chosen, _ = early.parse_known_args(arguments)
    asked_for_help = "-h" in arguments or "--help" in arguments
    env = usual if asked_for_help and "--env" not in arguments else chosen.env
    names_data = chosen.dataset is not None
    default_run, default_config = usual_values(name, config_class, presets, env, chosen.preset, names_data)
    default_run = dataclasses.replace(default_run, env=chosen.env)

    numbers = traced_fields(config_class)
    if asked_for_help:
        print(helptext.helptext(name, description, config_class, presets, env, chosen.preset), end="\n\n")
    else:
        check_grid(arguments, numbers, config_class)
    grid_class = dataclasses.make_dataclass("Grid", [(n, tuple[float, ...], ()) for n in numbers], frozen=True)
    grid_class.__doc__ = "Values to train side by side: a run for each and for each seed; of several flags, all pairs."
    command_class = dataclasses.make_dataclass(
        "Command",
        [
            ("run", tyro.conf.OmitArgPrefixes[Run]),
            ("config", tyro.conf.OmitArgPrefixes[config_class]),
            ("grid", grid_class),
        ],
        frozen=True,
    )
    command = counts.cli(
        command_class,
        prog=f"{name}.py",
        description=" ",  # said already, in the lines that it has
        args=list(arguments),
        default=command_class(default_run, default_config, grid_class()),
    )
    grid = {n: getattr(command.grid, n) for n in numbers if getattr(command.grid, n)}
    return checked(Request(command.run, command.config, grid))


def usual_values(
    name: str, config_class: type, presets: Mapping, env: str, preset: str | None, names_data: bool
) -> tuple[Run, Any]:
    """The Run and the Config of a task where nothing else is asked for: presets over defaults. Raises Refused.

    `names_data`: whether the user names prior data.
    """
    family = tasks.family(env)  # not yet its module: it may use JAX, which takes its devices but once
    values = presets.get(family, {}) | presets.get(f"{family}/{env}", {})
    if names_data:
        values |= presets.get(f"{family}/--dataset", {})
    if preset is not None:
        named = helptext.named(presets)
        if preset not in named:
            raise Refused(f"--preset {preset}: {name} has {', '.join(named) or 'no presets'}")
        values |= presets[preset] | presets.get(f"{preset}/{env}", {})
    run_fields = {f.name: f.default for f in dataclasses.fields(Run)}
    known = run_fields | {f.name: f.default for f in dataclasses.fields(config_class)}
    values = {name: counts.like(known.get(name), value) for name, value in values.items()}
    run = Run(env=env, preset=preset, **{k: v for k, v in values.items() if k in run_fields})
    return run, config_class(**{k: v for k, v in values.items() if k not in run_fields})


def checked(request: Request) -> Request:
    """The request, whose values can be served as far as they tell by themselves. Raises Refused."""
    for field, points in request.grid.items():
        check_distinct(field, points)
    configs = [dataclasses.replace(request.config, **point) for point in request.points()]
    for problem in (request.run.problem(), *(config.problem() for config in configs)):
        if problem:
            raise Refused(problem)
    return request


def check_grid(arguments: Sequence[str], numbers: Sequence[str], config_class: type) -> None:
    """Refuse a grid over anything but a number of the Config, one without values, and one beside other values."""
    flags = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    for at, argument in enumerate(arguments):
        if not argument.startswith("--grid."):
            continue
        flag, (_, _, value) = flags[at], argument.partition("=")
        field = flag.removeprefix("--grid.").replace("-", "_")
        if field in numbers:
            if not value and (at + 1 == len(arguments) or is_flag(arguments[at + 1])):
                raise Refused(f"{flag}: has no values; name some, as in --grid.discount 0.99 0.995")
            if flags.count(flag) > 1:
                raise Refused(f"{flag}: stands there twice; name all its values behind one")
            alone = flag.replace("--grid.", "--")
            if alone in flags:
                raise Refused(f"{alone} beside {flag}: the grid's values would replace it; leave one of them out")
            continue
        raise Refused(no_axis(argument, field, config_class))


def no_axis(asked: str, field: str, config_class: type) -> str:
    """Why there is no grid over a field, or over what is none, in one line that begins with what was `asked`."""
    numbers = traced_fields(config_class)
    if field in {f.name for f in dataclasses.fields(config_class)}:
        return (
            f"{asked}: {field} is a shape, count or choice, fixed when the program is compiled; "
            f"start one command per value, or vary a number: {', '.join(numbers)}"
        )
    near = difflib.get_close_matches(field, numbers, n=1)
    hint = f"did you mean --grid.{near[0]}?" if near else f"a grid takes: {', '.join(numbers)}"
    return f"{asked}: no such hyperparameter; {hint}"


def is_flag(argument: str) -> bool:
    """Whether an argument is a flag, not a value such as -1e-3."""
    try:
        float(argument)
    except ValueError:
        return argument.startswith("-")
    return False


def check_distinct(field: str, values: Sequence[float]) -> None:
    """Refuse a grid that holds a number twice: two equal runs would count as two."""
    seen: dict[float, float] = {}
    for value in values:
        with np.errstate(over="ignore"):
            stored = float(np.float32(value))
        if stored in seen:
            twin = seen[stored]
            alike = f"{value} twice" if twin == value else f"{twin} and {value}, which are one in single precision"
            raise Refused(f"--grid.{field.replace('_', '-')}: holds {alike}; leave one out")
        seen[stored] = value


class Resume(NamedTuple):
    """What --resume asks for."""

    folder: Path
    """The run directory."""
    dataset: str | None
    """Where its data are now, if they are named anew."""


def resumed(arguments: Sequence[str]) -> Resume | None:
    """What --resume asks for, beside which nothing but --dataset may stand; None without it."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--resume", type=Path)
    early.add_argument("--dataset")
    chosen, others = early.parse_known_args(arguments)
    if chosen.resume is None:
        return None
    if others:
        raise Refused(
            f"--resume takes no other flag but --dataset ({others[0]}): every setting comes from the run's config.json"
        )
    return Resume(chosen.resume, chosen.dataset)
