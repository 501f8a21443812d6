"""How long the algorithm files are, and what their lines are for: `python -m benchmarks.studies.lengths`.

Equations: the docstring on top. Settings: Config and presets. Interface: imports and what programs.py asks of an agent
(prepare, create, sample, enter, explore, act). Science: the rest, losses and updates and networks of its own. Empty
lines are left out. Rows go to benchmarks/results/lengths.{csv,json}.
"""

from __future__ import annotations

import ast
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.reporting.results import publish
from common.errors import exiting

INTERFACE = {"prepare", "create", "sample", "enter", "explore", "act"}


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


def main() -> None:
    """Count, print, write."""
    rows = []
    for path in sorted((Path(__file__).parents[2] / "algorithms").glob("*.py")):
        if path.stem != "__init__":
            counted = kinds(path.read_text())
            total = sum(counted.values())
            rows.append({"file": path.name, "lines": total, **counted, "share": round(counted["science"] / total, 2)})
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    publish("lengths", rows, "benchmarks.studies.lengths")


if __name__ == "__main__":
    exiting("lengths", lambda: tyro.cli(main, description=__doc__))
