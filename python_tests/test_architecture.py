"""The plan of the house, docs/architecture.md, held to the code: layers, arrows, no circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "deepl0_kernels"
PLAN = ROOT / "docs" / "architecture.md"


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below the package -> file; a package is named by its folder, the top by ""."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found["_C"] = root / PACKAGE / "_C.pyi"
    return found


def imports(path: Path, name: str, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, at its top or in a function.

    Not those for type checkers alone, and not the packages that Python runs on the way to a module.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    typing_only = set()
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only |= {id(inner) for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            bases = [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            if node.level:
                above = package.split(".") if package else []
                above = above[: len(above) - node.level + 1]
                bases = [(".".join([PACKAGE, *above, *filter(None, [node.module])]), names)]
            else:
                bases = [(node.module or "", names)]
        else:
            continue
        for base, names in bases:
            if base != PACKAGE and not base.startswith(PACKAGE + "."):
                continue
            base = base.removeprefix(PACKAGE).removeprefix(".")
            for imported in names or ("",):
                inner = f"{base}.{imported}".strip(".")
                yield inner if inner in known else base


def graph(root: Path) -> dict[str, set[str]]:
    known = modules(root)
    return {
        name: {to for to in imports(path, name, known) if to != name}
        for name, path in known.items()
    }


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for to in sorted(arrows[name]):
            if to not in index:
                visit(to)
                low[name] = min(low[name], low[to])
            elif to in stack:
                low[name] = min(low[name], index[to])
        if low[name] == index[name]:
            part = []
            while not part or part[-1] != name:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for name in arrows:
        if name not in index:
            visit(name)
    return found


def layers(page: str) -> dict[str, int]:
    """Room -> height, of the page's table: rows from the top down, rooms in the first column."""
    table = page.split("<!-- layers -->")[1].split("<!-- end of layers -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    height = {}
    for up, row in enumerate(reversed(rows)):
        for room in re.findall(r"`([\w.]+)`", row.split("|")[1]):
            assert room not in height, f"{room} stands in two layers"
            height[room] = up
    return height


def room_of(module: str) -> str:
    return module.split(".")[0] or PACKAGE


def climbing(arrows: dict[str, set[str]], height: dict[str, int]) -> list[str]:
    """Arrows from a room to another one that is not in a lower layer."""
    return [
        f"{name or PACKAGE} -> {to or PACKAGE}"
        for name, tos in arrows.items()
        for to in sorted(tos)
        if room_of(name) != room_of(to) and height[room_of(to)] >= height[room_of(name)]
    ]


def test_every_room_stands_in_the_plan_and_every_room_of_the_plan_stands():
    rooms = {room_of(name) for name in modules(ROOT)}
    assert rooms == set(layers(PLAN.read_text()))


def test_arrows_point_to_lower_layers_only():
    assert climbing(graph(ROOT), layers(PLAN.read_text())) == []


def test_no_circle():
    assert circles(graph(ROOT)) == []


@pytest.fixture
def small_house(tmp_path):
    """Two rooms, one above the other."""
    package = tmp_path / PACKAGE
    for name, text in {
        "__init__.py": "from .upper import f\n",
        "upper/__init__.py": "from .one import f\n",
        "upper/one.py": "def f():\n    from ..lower import g\n    return g()\n",
        "lower.py": "def g(): ...\n",
        "_C.pyi": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return tmp_path


HEIGHT = {PACKAGE: 2, "upper": 1, "lower": 0, "_C": 0}


def test_a_good_house_passes(small_house):
    arrows = graph(small_house)
    assert arrows["upper.one"] == {"lower"}
    assert arrows[""] == {"upper"}
    assert not circles(arrows)
    assert not climbing(arrows, HEIGHT)


@pytest.mark.parametrize(
    "line",
    [
        "from .upper import f",
        "from deepl0_kernels.upper import one",
        "import deepl0_kernels.upper.one",
        "def g():\n    from .upper.one import f",
    ],
)
def test_an_arrow_upwards_is_found(small_house, line):
    (small_house / PACKAGE / "lower.py").write_text(line + "\n")
    assert len(climbing(graph(small_house), HEIGHT)) == 1


def test_a_circle_within_a_room_is_found(small_house):
    upper = small_house / PACKAGE / "upper"
    (upper / "two.py").write_text("from . import one\n")
    (upper / "one.py").write_text("from .two import g\n")
    assert circles(graph(small_house)) == [["upper.one", "upper.two"]]


def test_what_type_checkers_alone_import_is_no_arrow(small_house):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .upper import f\n"
    (small_house / PACKAGE / "lower.py").write_text(text)
    assert not climbing(graph(small_house), HEIGHT)
