"""What `--help` of an algorithm file says before its flags: the method, examples, tasks and presets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from common import tasks

WIDTH = 100


def helptext(name: str, description: str, config_class: type, presets: Mapping, task: str, preset: str | None) -> str:
    """The text, for an algorithm's name, docstring, Config and presets; the flags' values are those of this task."""
    parts = [
        description,
        "Examples:\n"
        + "\n".join(f"  # {words}\n  {command}" for words, command in examples(name, config_class, task).items()),
        paragraph("Tasks", [*braced(playable(config_class)), *others(config_class)]),
    ]
    if chosen := named(presets):
        parts.append(paragraph("Presets", [f"--preset {each}" for each in chosen]))
    values = f"the values of {task}" + (f" with --preset {preset}" if preset else "")
    parts.append(textwrap.fill(
        f"The defaults below are {values}. Other tasks have others: --env TASK --help. Counts may be written 1000000, "
        "1_000_000 or 1e6.", WIDTH
    ))  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def examples(name: str, config_class: type, task: str) -> dict[str, str]:
    """Five commands: what it does -> how it is called."""
    own = [known for known in playable(config_class) if known != task]
    program = f"python algorithms/{name}.py"
    number, values = grid(config_class)
    return {
        f"learn {task}, with the values below": program,
        "another task; five seeds side by side": f"{program} --env {own[0]} --num-seeds 5 --out runs/mine",
        "go on where that run has ended": f"{program} --resume runs/mine",
        "a grid: three seeds of each value": f"{program} --grid.{number} {values} --num-seeds 3",
        "your own environment and data": f"{program} --env my_module:MyEnv-v0 --dataset my_data.npz",
    }


def grid(config_class: type) -> tuple[str, str]:
    """A number of the Config for an example of a grid, as a flag names it, and two values."""
    fields = config_class.__dataclass_fields__
    if "discount" in fields:
        return "discount", "0.99 0.995"
    return "learning-rate", "1e-4 3e-4"


def playable(config_class: type) -> list[str]:
    """The tasks of the table whose actions are of the algorithm's kind; all, where it has a hyperparameter for it."""
    if "discrete_actions" in config_class.__dataclass_fields__:
        return tasks.names()
    discrete = [name for name in tasks.names() if tasks.find(name).family == "classic"]
    return discrete if config_class.discrete_actions else [name for name in tasks.names() if name not in discrete]


def others(config_class: type) -> list[str]:
    """What may stand in the place of a task of the table."""
    ogbench = [] if config_class.discrete_actions else ["OGBench's single tasks (NAME-singletask-v0)"]
    return [*ogbench, "any installed Gymnasium id", "module:id of your own"]


def named(presets: Mapping[str, object]) -> list[str]:
    """The presets that `--preset` takes: neither a family's nor a task's, which apply by themselves."""
    families = {tasks.find(task).family for task in tasks.names()} | {"gym"}
    return sorted(name for name in set(presets) - families if "/" not in name)


def braced(names: Sequence[str]) -> list[str]:
    """Names that begin alike, as a shell's braces would expand to them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        first, _, rest = name.partition("-")
        groups.setdefault(first, []).append(rest)
    return [
        f"{first}-{{{','.join(endings)}}}" if len(endings) > 1 else f"{first}-{endings[0]}"
        for first, endings in groups.items()
    ]


def paragraph(head: str, items: Iterable[str]) -> str:
    """A list of things, broken between them alone."""
    lines, line = [], f"{head}:"
    for item in items:
        if len(line) + len(item) + 2 > WIDTH and line:
            lines.append(line)
            line = " "
        line += f" {item},"
    return "\n".join([*lines, line.rstrip(",")])
