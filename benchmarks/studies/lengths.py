"""How long the algorithm files are, and what their lines are for: `python -m benchmarks.studies.lengths`.

Equations: the docstring on top. Settings: Config and presets. Interface: imports and what programs.py and policy files
ask of an agent (prepare, create, sample, enter, explore, act, recall, proceed, portable). Science: the rest, losses and
updates and networks of its own; `share`, of all lines. `own` is another share: of the lines that are neither imports
nor signatures nor docstrings of one line, those that no other algorithm file has, wherever they are indented. Empty
lines are left out. Rows go to benchmarks/results/lengths.{csv,json}.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.reporting.results import publish
from common.errors import exiting

INTERFACE = {"prepare", "create", "sample", "enter", "explore", "act", "recall", "proceed", "portable"}


def kinds(source: str) -> dict[str, int]:
    """Lines of each kind."""
    tree = ast.parse(source)
    kind = ["interface"] * len(source.splitlines())

    def mark(node: ast.AST, name: str) -> None:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        kind[first - 1 : node.end_lineno] = [name] * (node.end_lineno - first + 1)

    for node in tree.body:
        if node is tree.body[0]:
            mark(node, "equations")
        elif isinstance(node, ast.Assign | ast.AnnAssign) or getattr(node, "name", "") == "Config":
            mark(node, "settings")
        elif isinstance(node, ast.ClassDef) and any(getattr(n, "name", "") == "create" for n in node.body):
            for part in node.body:
                own = isinstance(part, ast.FunctionDef) and part.name not in INTERFACE
                mark(part, "science" if own else "interface")
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            mark(node, "science")
    filled = [name for name, line in zip(kind, source.splitlines(), strict=True) if line.strip()]
    return {name: filled.count(name) for name in ("equations", "settings", "interface", "science")}


def telling(source: str) -> list[str]:
    """The filled lines, without indentation, that are neither imports nor signatures nor docstrings of one line."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            left_out.update(range(first, max(node.lineno + 1, node.body[0].lineno)))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.lineno == node.end_lineno:
            left_out.add(node.lineno)
    return [
        line.strip() for number, line in enumerate(source.splitlines(), 1) if line.strip() and number not in left_out
    ]


def own(sources: Mapping[str, str]) -> dict[str, float]:
    """File -> share of its telling lines that no other file has."""
    lines = {name: telling(source) for name, source in sources.items()}
    files = Counter(line for mine in lines.values() for line in set(mine))
    return {name: sum(files[line] == 1 for line in mine) / len(mine) for name, mine in lines.items()}


def main() -> None:
    """Count, print, write."""
    paths = sorted((Path(__file__).parents[2] / "algorithms").glob("*.py"))
    sources = {path.name: path.read_text() for path in paths if path.stem != "__init__"}
    rows, alone = [], own(sources)
    for name, source in sources.items():
        counted = kinds(source)
        total = sum(counted.values())
        shares = {"share": round(counted["science"] / total, 2), "own": round(alone[name], 2)}
        rows.append({"file": name, "lines": total, **counted, **shares})
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    publish("lengths", rows, "benchmarks.studies.lengths")


if __name__ == "__main__":
    exiting("lengths", lambda: tyro.cli(main, description=__doc__))
