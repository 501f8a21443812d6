"""From a request to its runs: task, data and run directory, all checked before anything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from common import datasets, environments, experts, keyboard, origins, resuming, stops, tasks
from common.commandline import Request
from common.datasets import Dataset, cards
from common.errors import EnvironmentFailed, Refused
from common.experts import Expert
from common.makers import ENDING
from common.memory import check_memory
from common.programs import Programs, programs_of
from common.rehearsal import check_single, plays_several, rehearse, sharing
from common.runs import RunDirectory, commit, device, versions
from common.spreading import count_devices
from common.tasks import Task
from common.terminal import making
from common.trackers import Trackers
from common.training import Result, Session


class Given(NamedTuple):
    """What was handed over in Python, where no command line is."""

    data: Callable[[Task], Dataset] | None = None
    """The prior data, for the task; None: they have a name, or there are none."""


def run(
    agent_class: type,
    request: Request,
    arguments: Sequence[str],
    console: Console,
    begun: tuple[RunDirectory, Mapping[str, Any]] | None = None,
    given: Given | None = None,
) -> Result:
    """Train what a request asks for.

    `arguments` are those that parse to the request: what --resume reads. `begun` is a run to go on with: its directory,
    and what its config.json says. `given` is for requests from Python. Raises Refused for a request that cannot be
    served, before anything is written.
    """
    directory, saved = begun or (None, None)
    task = tasks.find(request.run.env)
    given_data = given and given.data
    check(request, task, bool(given_data))
    devices = count_devices(request.number_of_runs, request.run.devices)
    *sizes, alone = rehearse(task, request.config.discrete_actions, plays_several(request))
    if alone is not None:
        request = sharing(request, alone)
        console.print(
            f"{task.name} can exist only once at a time: collection and evaluation share it (--single-environment)",
            soft_wrap=True,
        )
    check_memory(request, devices, *sizes)
    # A resumed run goes on with the data it began with, whatever has come within reach meanwhile.
    source = saved["dataset"]["source"] if saved and saved["dataset"] else None
    with resuming.finding_data(directory and directory.path):
        data = given_data(task) if given_data else load(request, task, request.run.dataset or source, console)
    card = None if data is None else cards.card(data, task)
    if data is not None:
        datasets.environment_of(task, data).close()
        sizes = data.observation.shape[1], data.action.shape[1]
    expert = find_expert(request, task, sizes)
    prior = None if data is None else agent_class.prepare(request.config, data, task)
    if told := check_memory(request, devices, *sizes, prior, agent_class):
        console.print(told, highlight=False, soft_wrap=True)
    shape = request.number_of_runs, request.run.width, request.run.devices
    programs = programs_of(agent_class, request.config, *shape, prior, request.run.precision)
    if directory is None:
        told = agent_class, request, arguments, task, card, programs, bool(given_data), expert
        directory, saved = begin(*told)
    else:
        if card is not None:
            resuming.check_data(directory, saved, card)
        if expert is not None and expert.digest != saved["expert"]["sha256"]:
            raise Refused(f"{directory.path}: its expert has changed since it began ({expert.name}); put it back")
    if given is not None:
        directory.way = resuming.in_python(directory.path, saved)
    stops.remedy(f"continue with {directory.way}")
    if card is not None:
        console.print(cards.format_card(card), highlight=False, soft_wrap=True)
    with directory.claimed(), contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(
                contextlib.closing(Session(request, programs, task, data, prior, directory, console, expert))
            )
            if begun is not None:
                if card is not None:
                    resuming.note_data(directory, saved, card)
                session.restore()
            with resuming.telling(directory, console, session.checkpoints is not None):
                return session.train()
        except EnvironmentFailed as error:
            raise Refused(f"{error}; continue with {directory.way}") from error


def check(request: Request, task: Task, has_data: bool = False) -> None:
    """Raise Refused for what can be seen to be impossible before data are loaded; `has_data`: they are given."""
    if jax.config.jax_disable_jit:
        raise Refused(
            "JAX_DISABLE_JIT is set, and whole runs without compiling would take for ever: unset it; JAX_DEBUG_NANS=1 "
            "finds where a number goes wrong, and an agent's methods can be called one by one"
        )
    Trackers.check(request.run)
    count_devices(request.number_of_runs, request.run.devices)
    if why := check_single(request):
        raise Refused(f"--single-environment: {why}")
    if (has_data or request.run.dataset is not None) and not request.config.uses_prior_data:
        named = f" {request.run.dataset}" if request.run.dataset else ""
        raise Refused(
            f"--dataset{named}: nothing is learnt from data with {request.config.without_data}; raise it, or leave the "
            "data out"
        )
    if why := check_workers(request):
        raise Refused(f"--env-workers {request.run.env_workers}: {why}")
    if request.run.eval_async:
        check_host()
    if request.config.attended:
        if request.number_of_runs > 1:
            raise Refused(f"one person can decide for one run, not for {request.number_of_runs}: start them in turn")
        keyboard.check()
    for point in request.points():
        if why := dataclasses.replace(request.config, **point).misfit(task):
            raise Refused(why)


def check_workers(request: Request) -> str | None:
    """Why there is nothing to do for so many processes that step environments, or None."""
    runs, workers = request.number_of_runs, request.run.env_workers
    if not workers:
        return None
    if not dict(request.config.phases).get("online"):
        return "nothing is collected in these phases; leave it out"
    if request.config.expert is not None:
        return "an expert is asked in the environments of this process; leave it out"
    if workers > runs:
        return f"there {'is 1 run' if runs == 1 else f'are {runs} runs'}, with an environment each"
    return None


def check_host() -> None:
    """Refuse evaluations beside learning where JAX does not act on the host's CPU."""
    try:
        jax.devices("cpu")
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", jax.default_backend())
        raise Refused(
            f"--eval-async: the host's CPU acts in it, which JAX leaves out here; set JAX_PLATFORMS={asked},cpu"
        ) from error


def find_expert(request: Request, task: Task, sizes: Sequence[int]) -> Expert | None:
    """The expert that a request's algorithm asks while it collects; None if it asks nobody. Raises Refused."""
    config = request.config
    if config.expert is None or not dict(config.phases).get("online"):
        return None
    with contextlib.closing(environments.make(task, *sizes)) as environment:
        return experts.find(config.expert, task, environment)


def load(request: Request, task: Task, source: str | None, console: Console) -> Dataset | None:
    """The prior data of a request, from `source` or the task's own; None if it learns without. Raises Refused."""
    if not request.config.uses_prior_data:
        return None
    with making(console) as progress:
        data = datasets.load(
            task, source, progress, lambda line: console.print(line, highlight=False, soft_wrap=True, markup=False)
        )
    if data is None:
        without = request.config.without_data and f", or learn without any: {request.config.without_data}"
        raise Refused(f"--env {task.name} has no prior data of its own; name some with --dataset{without}")
    return data


def begin(
    agent_class: type,
    request: Request,
    arguments: Sequence[str],
    task: Task,
    card: Mapping[str, Any] | None,
    programs: Programs,
    has_given_data: bool = False,
    expert: Expert | None = None,
) -> tuple[RunDirectory, dict[str, Any]]:
    """A new run directory, with all that is needed to repeat its runs in config.json. Raises Refused."""
    origin = origins.of(agent_class)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    folder = task.name.replace("/", "-").removesuffix(ENDING)
    with programs.products():
        matmul_precision = jax.config.jax_default_matmul_precision
    config = (
        {
            "algorithm": origin.name,
            "class": origin.class_name,
            "id": uuid.uuid4().hex,
            "began_in": os.getcwd(),
            "sources": origin.digests,
            "arguments": list(arguments),
            "run": dataclasses.asdict(request.run),
            "config": dataclasses.asdict(request.config),
            "grid": dict(request.grid),
            "dataset": card,
            "versions": versions(),
            "commit": commit(),
            "device": device(),
            "devices": programs.mesh.size,
            "matmul_precision": matmul_precision,
        }
        | ({} if origin.session is None else {"session": origin.session})
        | ({"data_given": True} if has_given_data else {})
        | ({} if expert is None else {"expert": {"name": expert.name, "sha256": expert.digest}})
    )
    return RunDirectory.create(request.run.out or Path("runs") / origin.name / folder / stamp, config), config
