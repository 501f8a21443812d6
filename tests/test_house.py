"""Which part of the project may import which: arrows run one way, and there are no circles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "algorithms": {"common"},
    "common": {"common"},
    "benchmarks": {"algorithms", "benchmarks", "common"},
    "tests": {"algorithms", "benchmarks", "common", "tests"},
}
"""Part -> the parts that its files may import."""
Graph = dict[str, set[str]]
"""Module -> the modules that it imports."""


def is_for_types(node: ast.AST) -> bool:
    """Whether it is `if TYPE_CHECKING:`, whose body no program runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All that are below a node and run: also those in functions, methods and branches."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_for_types(child):
            for other in child.orelse:
                yield from imports(ast.Module([other], []))
        else:
            yield from imports(child)


def imported(module: str, source: str, modules: set[str], is_package: bool = False) -> set[str]:
    """The `modules` that a module's source imports; `from package import name` is of `package.name` if there is one."""
    found = set()
    for node in imports(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")]).rstrip(".")
        names = {f"{base}.{alias.name}" for alias in node.names}
        found |= names & modules
        if not names <= modules:
            found.add(base)
    return found & modules


def graph(root: Path) -> Graph:
    """Of all modules of the parts below a folder; a package is the module of its __init__.py."""
    files = {}
    for part in MAY_IMPORT:
        for path in sorted((root / part).rglob("*.py")):
            names = path.relative_to(root).with_suffix("").parts
            files[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return {
        module: imported(module, path.read_text(), set(files), path.name == "__init__.py")
        for module, path in files.items()
    }


def forbidden(arrows: Graph) -> list[str]:
    """The imports that lead where a part may not look."""
    part = {module: module.partition(".")[0] for module in arrows}
    return [f"{a} -> {b}" for a in sorted(arrows) for b in sorted(arrows[a]) if part[b] not in MAY_IMPORT[part[a]]]


def circle(arrows: Graph) -> list[str]:
    """A path of modules that import one another and ends where it began; empty if there is none."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for following in sorted(arrows.get(module, ())):
            if found := follow(following, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(arrows) if (found := follow(module, []))), [])


@pytest.fixture(scope="module")
def house() -> Graph:
    return graph(ROOT)


def test_every_part_imports_only_what_it_may(house):
    assert forbidden(house) == []


def test_no_circle_of_imports(house):
    assert circle(house) == []


def test_the_graph_is_that_of_the_project(house):
    """Imports of every form are seen: of modules, of names, of packages."""
    assert "common.command" in house["algorithms.rlpd"]
    assert "common.datasets.sources" in house["common.datasets"]
    assert "common.datasets" in house["common.datasets.cards"]
    assert {"common.recipes", "common.environments"} <= house["common.datasets"]


def test_a_circle_and_a_forbidden_import_would_be_found(tmp_path):
    files = {
        "common/__init__.py": "",
        "common/a.py": "def later():\n    if True:\n        from common import b\n",
        "common/b.py": "from .c import name",
        "common/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import common.a\n",
        "algorithms/one.py": "from common.a import later",
        "benchmarks/speed.py": "import algorithms.one",
        "tests/test_one.py": "from algorithms import one",
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    arrows = graph(tmp_path)
    assert arrows["common.a"] == {"common.b"}
    assert arrows["common.b"] == {"common.c"}
    assert arrows["common.c"] == set()
    assert (circle(arrows), forbidden(arrows)) == ([], [])

    (tmp_path / "common" / "c.py").write_text("import common.a\nimport benchmarks.speed")
    (tmp_path / "algorithms" / "two.py").write_text("try:\n    from algorithms import one\nfinally:\n    one = 2")
    arrows = graph(tmp_path)
    assert circle(arrows | {"common.c": {"common.a"}}) == ["common.a", "common.b", "common.c", "common.a"]
    assert forbidden(arrows) == ["algorithms.two -> algorithms.one", "common.c -> benchmarks.speed"]
