"""The command line of an algorithm file: from arguments to an exit status."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from common import commandline, origins, stops, terminal
from common.commandline import Request
from common.errors import Refused, exiting, one_line
from common.machine import cores
from common.origins import Origin
from common.runs import RunDirectory, finite, versions

MEASURED = ("eval_every", "eval_episodes", "log_every")
"""Arguments of a run that decide what its tables hold; presets may set them."""


def main(agent_class: type, config_class: type, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """The command line of an algorithm file. Leaves with status 0 only when the run has finished."""
    console = terminal.console()

    def announce(text: str) -> None:
        console.print(text, soft_wrap=True)

    if jax.config.jax_enable_x64:
        jax.config.update("jax_enable_x64", False)
        announce("JAX_ENABLE_X64 is set, and runs are in single precision all the same")
    with stops.commanding(announce):
        exiting(Path(sys.argv[0]).name, lambda: serve(agent_class, config_class, presets, sys.argv[1:], console))


def serve(agent_class: type, config_class: type, presets: Mapping, arguments: list[str], console: Console) -> int:
    """Parse, check, train; the exit status. Raises Refused before anything is written for a request it cannot serve."""
    source = Path(inspect.getfile(agent_class)).resolve()
    origin = origins.of(agent_class)
    name = origin.name
    check_siblings(source)
    description = inspect.getdoc(sys.modules[agent_class.__module__]) or ""
    resume = commandline.resumed(arguments)
    if resume is None:
        request = commandline.parse(arguments, name, description, config_class, presets)
        from common import launch  # what learns takes seconds to import, and --help has ended by now

        prepare_devices(request)
        return launch.run(agent_class, request, arguments, console).status

    from common import launch, resuming

    folder = Path(os.path.abspath(resume.folder))
    directory, saved = RunDirectory.open(folder)
    check_class(resume.folder, saved, origin)
    if resuming.has_given_data(saved) and resume.dataset is None:
        raise Refused(
            f"--resume {resume.folder}: its data were given in Python; name them with --dataset KIND:WHAT, or go on "
            f"there, with {resuming.in_python(folder, saved)}"
        )
    if (folder / "summary.json").exists():
        console.print(f"{resume.folder} has finished already; its results are in summary.json", soft_wrap=True)
        return 0
    moved = resuming.data_now(saved, resume.dataset and resuming.whole(resume.dataset))
    with contextlib.chdir(resuming.began_in(folder, saved)):
        request = commandline.parse(saved["arguments"], name, description, config_class, presets)
        check_unchanged(resume.folder, saved, request)
        now = {"devices": saved["devices"], "dataset": moved or request.run.dataset}
        request = dataclasses.replace(request, run=dataclasses.replace(request.run, **now))
        prepare_devices(request)
        request = on_this_machine(request, saved, origin.digests, console)
        return launch.run(agent_class, request, saved["arguments"], console, (directory, saved)).status


def prepare_devices(request: Request) -> None:
    """Take the devices: one of the host's per core for several runs; and a cache of compiled programs.

    Before the module of a task is imported, which may use JAX as well. Raises Refused where JAX finds none.
    """
    count = request.run.devices or min(cores(), request.number_of_runs)
    with contextlib.suppress(RuntimeError):  # raised where JAX is in use already, as in a notebook: its devices stay
        jax.config.update("jax_num_cpu_devices", count)
    if jax.config.jax_compilation_cache_dir is None:
        # A user of a container may have no home, or none to write in, and so no cache.
        with contextlib.suppress(RuntimeError, OSError):
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart" / "jax"
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # how JAX says that a platform is not there, or not known
        asked = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)]
        told = " ".join(f"{name}={os.environ[name]}" for name in asked) or "JAX cannot start"
        reason = f" ({one_line(error)})" if str(error) else ""
        raise Refused(
            f"{told}: no such device here{reason}; there is {platforms()}: "
            f"unset {' and '.join(asked) or 'what asks for another'}, or name one that is there"
        ) from error


def platforms() -> str:
    """The kinds of devices that JAX finds where none is asked for, in words."""
    jax.config.update("jax_platforms", None)
    jax.config.update("jax_platform_name", "")
    with contextlib.suppress(RuntimeError, AssertionError):
        return ", ".join(sorted({device.platform for device in jax.devices()}))
    return "none that works"


def check_siblings(source: Path) -> None:
    """Refuse an algorithm of one checkout with the common/ of another, which is what an installation may lead to."""
    own, imported = source.parent.parent / "common" / Path(__file__).name, Path(__file__).resolve()
    if own.exists() and own.resolve() != imported:
        raise Refused(
            f"{source} would run with {imported.parent} instead of the common/ beside it: pip install -e "
            f"{source.parent.parent}, or set PYTHONPATH to that folder"
        )


def check_unchanged(resume: Path, saved: Mapping[str, Any], request: Request) -> None:
    """Refuse to go on with other values than the run began with: its arguments may mean something else by now."""
    values = dataclasses.asdict(request.config) | {name: getattr(request.run, name) for name in MEASURED}
    now = json.loads(json.dumps(finite(values), default=str))
    then = saved["config"] | {name: saved["run"][name] for name in MEASURED}
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            raise Refused(
                f"--resume {resume}: {name} was {then.get(name)} when it began and is {now.get(name)} now, since "
                f"defaults or presets have changed; go on with the code of commit {saved['commit']}, or begin anew"
            )


def check_class(resume: Path, saved: Mapping[str, Any], origin: Origin) -> None:
    """Refuse to go on with another algorithm than the run began with."""
    began = saved.get("session")
    # Before there was a Python interface, a file had one class.
    if saved["algorithm"] == origin.name and saved.get("class", origin.class_name) == origin.class_name:
        return
    if began is not None:
        raise Refused(
            f"--resume {resume}: a run of {began['class']}, a class of a Python session: go on there, with "
            f"resume(folder, {began['class']})"
        )
    theirs, mine = f"{saved['algorithm']}.py", f"{origin.name}.py"
    if theirs == mine or origin.session is not None:
        theirs, mine = f"{saved.get('class', 'a class')} of {theirs}", origin.class_name
    raise Refused(f"--resume {resume}: a run of {theirs}, not of {mine}")


def on_this_machine(
    request: Request, saved: Mapping[str, Any], digests: Mapping[str, str], console: Console
) -> Request:
    """The request with no more devices than there are; says what keeps a resumed run from repeating itself exactly."""
    notes = []
    notes += [f"{name} has changed" for name, sha256 in digests.items() if saved["sources"].get(name) != sha256]
    mine = versions()
    notes += [f"{package} was {old}, is {mine.get(package)}" for package, old in saved["versions"].items()
              if old != mine.get(package)]  # fmt: skip
    if saved["device"]["backend"] != jax.default_backend():
        notes.append(f"it ran on {saved['device']['kind']}")
    if (request.run.devices or 1) > jax.device_count():
        notes.append(f"it ran on {request.run.devices} devices, {jax.device_count()} are here")
        request = dataclasses.replace(request, run=dataclasses.replace(request.run, devices=None))
    if notes:
        console.print(f"since this run began, {'; '.join(notes)}: numbers may differ", highlight=False, soft_wrap=True)
    return request
