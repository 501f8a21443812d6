"""Training from Python, such as a notebook: what the command line of an algorithm file asks for, as functions."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common import command, commandline, datasets, launch, makers, origins, resuming, tasks, terminal, values
from common.agent import Hyperparameters
from common.commandline import Request, Run
from common.datasets import Dataset
from common.errors import Refused
from common.launch import Given
from common.runs import RunDirectory
from common.trained import Trained
from common.training import Result

Data = str | Dataset | Mapping[str, np.ndarray]
"""Prior data: a source as `--dataset` takes it; transitions; or arrays with the keys of D4RL's files."""
Env = str | Callable[[], gymnasium.Env]
"""A task: its name, or a function that makes a Gymnasium environment."""


def train(
    agent_class: type,
    config: Hyperparameters | None = None,
    *,
    env: Env | None = None,
    dataset: Data | None = None,
    preset: str | None = None,
    grid: Mapping[str, Iterable[float]] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    **given: Any,
) -> Trained:
    """Train an algorithm, as the command line of its file does.

    `given` are values of the run, such as num_seeds, or of the Config, such as discount; they win over presets, which
    apply as they do there, and these over defaults. A `config` is taken whole instead: presets then set only values of
    the run. `grid` has the values of each field that is varied. The class may be one of this session, such as one that
    extends RLPD by another loss. `resume` names a run directory to go on with, and nothing is given beside it but `env`
    and `dataset`. Ctrl-C stops as on the command line, and what there is then is returned. Raises Refused.
    """
    if resume is not None:
        others = {"config": config, "preset": preset, "grid": grid, "out": out} | given
        if named := [name for name, value in others.items() if value is not None]:
            raise Refused(f"{named[0]} beside resume: every setting comes from the run's config.json")
        return resume_run(resume, agent_class, env=env, dataset=dataset)
    origin = origins.of(agent_class)
    config_class = config_class_of(agent_class) if config is None else type(config)
    if config is not None and preset is not None:
        raise Refused(f"preset={preset!r} beside a config, which is whole: give values instead of the config")
    name = config_class.default_task or Run.env if env is None else task_name(env)
    default_run, default_config = commandline.usual_values(
        origin.name, config_class, presets_of(agent_class), name, preset, dataset is not None
    )
    of_run, of_config = values.divided(config_class, given)
    if isinstance(dataset, str):
        of_run["dataset"] = dataset
    if out is not None:
        of_run["out"] = Path(out).expanduser()
    points = values.grid(config_class, grid or {}, of_config)
    run = dataclasses.replace(default_run, **of_run)
    whole = dataclasses.replace(default_config if config is None else config, **of_config)
    request = commandline.checked(Request(run, whole, points))
    command.prepare_devices(request)
    named = of_config if config is None else [field.name for field in dataclasses.fields(config)]
    words = values.arguments(request, ["env", "preset", *of_run, *(name for name in named if name not in points)])
    data = prepared(env, dataset)
    return returned(launch.run(agent_class, request, words, terminal.console(), given=data))


def resume_run(
    folder: str | Path, agent_class: type, *, env: Env | None = None, dataset: Data | None = None
) -> Trained:
    """Go on with the runs of a directory, from their newest checkpoint; those that have finished are returned.

    `env` and `dataset` are given again where they were no names; a name of data says where they have moved to. The
    class is the one that began. Raises Refused.
    """
    folder = Path(os.path.abspath(Path(folder).expanduser()))
    directory, saved = RunDirectory.open(folder)
    origin, console = origins.of(agent_class), terminal.console()
    command.check_class(folder, saved, origin)
    if (folder / "summary.json").exists():
        console.print(f"{folder} has finished already", soft_wrap=True)
        return Trained(folder, directory.summary())
    if env is not None and task_name(env) != saved["run"]["env"]:
        raise Refused(f"resume {folder}: it began in {saved['run']['env']}, not in {task_name(env)}")
    if dataset is None and resuming.has_given_data(saved):
        raise Refused(f"resume {folder}: its data were given in Python; give the same as dataset=")
    request = request_of(folder, saved, agent_class)
    source = resuming.whole(dataset) if isinstance(dataset, str) else None
    now = {"devices": saved["devices"], "dataset": resuming.data_now(saved, source) or request.run.dataset}
    request = dataclasses.replace(request, run=dataclasses.replace(request.run, **now))
    command.prepare_devices(request)
    with contextlib.chdir(resuming.began_in(folder, saved)):
        request = command.on_this_machine(request, saved, origin.digests, console)
        data, begun = prepared(env, dataset), (directory, saved)
        return returned(launch.run(agent_class, request, saved["arguments"], console, begun, given=data))


def request_of(folder: Path, saved: Mapping[str, Any], agent_class: type) -> Request:
    """What a run was begun with, by its config.json. Raises Refused."""
    config_class = config_class_of(agent_class)
    of_run, of_config = values.kinds(Run), values.kinds(config_class)
    for kinds, kept in ((of_run, saved["run"]), (of_config, saved["config"])):
        if unknown := sorted(kept.keys() - kinds.keys()):
            raise Refused(f"resume {folder}: {config_class.__name__} has no {unknown[0]}, with which the run began")
    run, config = (
        Run(**values.checked(of_run, saved["run"])),
        config_class(**values.checked(of_config, saved["config"])),
    )
    return Request(run, config, {name: tuple(points) for name, points in saved["grid"].items()})


def prepared(env: Env | None, dataset: Data | None) -> Given:
    """What is handed over as it is: a function's environment is known by its name from here on. Raises Refused."""
    if env is not None and not isinstance(env, str):
        tasks.given(env)
    if dataset is None or isinstance(dataset, str):
        return Given()
    if isinstance(dataset, Mapping):
        return Given(lambda asked: datasets.of_arrays(asked, dataset))
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise Refused(
            f"dataset is of type {kind}; it takes a source such as 'npz:FILE', a Dataset, or a dict of arrays"
        )
    datasets.check_counted(dataset)
    return Given(lambda asked: dataset)


def task_name(env: Any) -> str:
    """The name of a task that may be given as a function. Raises Refused."""
    if isinstance(env, str):
        return env
    if isinstance(env, gymnasium.Env) or not callable(env):
        raise Refused(
            f"env is of type {type(env).__name__}; it may be a task's name, or a function that makes the environment, "
            "since several are needed, such as lambda: MyEnv()"
        )
    return makers.name_of(env)


def config_class_of(agent_class: type) -> type:
    """The Config of an agent's class: what its field `config`, or the one it inherits, is annotated with."""
    for parent in agent_class.__mro__:
        kind = inspect.get_annotations(parent).get("config")
        kind = getattr(sys.modules[parent.__module__], kind, None) if isinstance(kind, str) else kind
        if isinstance(kind, type) and issubclass(kind, Hyperparameters):
            return kind
    raise Refused(f"{agent_class.__name__} has no Config: annotate its field, `config: Config`, or give train one")


def presets_of(agent_class: type) -> Mapping[str, Mapping[str, Any]]:
    """The presets of an algorithm, also for a class that extends it elsewhere."""
    modules = (vars(sys.modules[parent.__module__]) for parent in agent_class.__mro__)
    return next((module["PRESETS"] for module in modules if "PRESETS" in module), {})


def returned(result: Result) -> Trained:
    """What a session came to, for Python."""
    return Trained(Path(os.path.abspath(result.folder)), result.summary)
