"""Prior data from the command line: what there is, what is on this machine, what a file holds.

    python -m common.datasets list
    python -m common.datasets info pointmaze-large
    python -m common.datasets download antmaze-large-diverse
    python -m common.datasets make pointmaze-medium --size 1000000
    python -m common.datasets check door-human.hdf5 --env door-binary

Exit status 2, with one line that says what is wrong, for whatever cannot be served.
"""

from __future__ import annotations

import time
from typing import Annotated

import tyro
from minari.storage.datasets_root_dir import get_dataset_path
from rich.console import Console

from common import counts, datasets, recipes, tasks
from common.datasets import cards, pixels
from common.datasets.downloads import is_here
from common.errors import Refused, exiting
from common.terminal import making

CONSOLE = Console()
Name = Annotated[str, tyro.conf.Positional]


def list_tasks() -> None:
    """The tasks with prior data: where each task's own come from, and whether they are on this machine."""
    CONSOLE.print(f"{'task':<24} here  data")
    for name in tasks.names():
        task = tasks.find(name)
        found = _found(task)
        here = "yes" if found else ""
        CONSOLE.print(f"{name:<24} {here:<4}  {found or task.default_dataset}", soft_wrap=True, highlight=False)


def info(name: Name) -> None:
    """The card of a task's data, which must be on this machine.

    Args:
        name: A task.
    """
    task = tasks.find(name)
    if task.default_dataset is None:
        raise Refused(f"{name} has no data of its own: `check FILE --env {name}` shows a file's card")
    source = _found(task)
    if source is None:
        ways = [way for way, there in (("download", _published(task)), ("make", name in recipes.names())) if there]
        commands = " or ".join(f"python -m common.datasets {way} {name}" for way in ways)
        raise Refused(f"{task.default_dataset} is not on this machine: {commands}")
    _show(task, source)


def download(name: Name) -> None:
    """Fetch a task's published data, unless they are on this machine already, and show their card.

    Args:
        name: A task.
    """
    task = tasks.find(name)
    published = _published(task)
    if not published:
        raise Refused(f"nobody publishes data for {name} that can be downloaded; `list` shows what there is")
    _show(task, published[0])


def make(name: Name, size: int | None = None, seed: int = 0) -> None:
    """Make a recipe's data, unless they are on this machine already, and show their card.

    Args:
        name: A recipe; `list` shows them.
        size: Transitions; by default the recipe's own number.
        seed: Of everything random.
    """
    start = time.perf_counter()
    with making(CONSOLE) as progress:
        identifier = recipes.make(name, size, seed, progress, _say)
    CONSOLE.print(f"minari:{identifier} in {get_dataset_path(identifier)} after {time.perf_counter() - start:.1f} s")
    _show(tasks.find(name), f"minari:{identifier}")


def check(what: Name, env: str) -> None:
    """Read a file as a run would, and show the card or what is wrong with it.

    Args:
        what: A file (.hdf5, .h5, .npz), a LeRobot folder, or a source: ogbench:FILE.npz, lerobot:FOLDER?reward=end....
        env: The task it is for; not used for vd4rl.
    """
    if what.startswith("vd4rl:"):
        text = cards.format_pixel_card(cards.pixel_card(pixels.load(what)))
        CONSOLE.print(text, highlight=False, soft_wrap=True)
        return
    _show(tasks.find(env), what)


def _published(task: tasks.Task) -> list[str]:
    """The sources of a task that can be downloaded, the default first."""
    sources = [f"{kind}:{where}" for kind, where in task.datasets.items() if kind != "recipe"]
    return sorted(sources, key=lambda source: source != task.default_dataset)


def _found(task: tasks.Task) -> str | None:
    """What a run without a network would learn from, if it is here: the task's own data, else its recipe's."""
    own, recipe = task.default_dataset, task.datasets.get("recipe")
    sources = [*([own] if own else []), *([f"recipe:{recipe}"] if recipe else [])]
    return next((source for source in sources if is_here(_place(source))), None)


def _place(source: str) -> str:
    """The source where its data lie: a recipe's are a Minari data set."""
    kind, _, name = source.partition(":")
    return f"minari:{recipes.dataset_id(name)}" if kind == "recipe" else source


def _say(line: str) -> None:
    CONSOLE.print(line, highlight=False, markup=False, soft_wrap=True)


def _show(task: tasks.Task, source: str) -> None:
    with making(CONSOLE) as progress:
        data = datasets.load(task, source, progress, _say)
    CONSOLE.print(cards.format_card(cards.card(data, task)), highlight=False, soft_wrap=True)


def main() -> None:
    """Serve one command."""
    commands = {"list": list_tasks, "info": info, "download": download, "make": make, "check": check}
    program = "python -m common.datasets"
    exiting("common.datasets", lambda: counts.cli(commands, prog=program, description=__doc__))


if __name__ == "__main__":
    main()
