"""Dependencies are used through their public interfaces alone; what has none stands in `cdn_tune.compat`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdn_tune import compat

PACKAGE = Path(__file__).resolve().parents[1] / "cdn_tune"
COMPAT = PACKAGE / "compat.py"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != COMPAT)
MOST = 5
# Parts of dependencies that no underscore marks, and that none documents.
INTERNAL = ("ray.core.generated",)
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace"}  # of named tuples


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_foreign(module: str) -> bool:
    """Whether a module is a dependency's. Names from `distributed.ray` are Ray's."""
    top = module.partition(".")[0]
    return module == "cdn_tune.distributed.ray" or (top != "cdn_tune" and top not in sys.stdlib_module_names)


def private_uses(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each private part of a dependency that code imports or reaches into.

    An attribute counts as a dependency's if it belongs to a name imported from one, or if nothing in the file defines
    it: ours are defined in the class, or module, that uses them.
    """
    tree = ast.parse(source)
    foreign: set[str] = set()
    defined: set[str] = set(DOCUMENTED)
    python: set[str] = set()  # modules of the standard library
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names = foreign if is_foreign(alias.name) else python
                names.add(alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and is_foreign(node.module or ""):
            foreign |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and owner(node) == "self":
            defined.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    for node in ast.walk(tree):
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in imported:
            parts = name.split(".")
            if (
                is_foreign(name)
                and parts[0] != "cdn_tune"
                and (any(map(is_private, parts)) or name.startswith(INTERNAL))
            ):
                yield node.lineno, name
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            of = owner(node)
            if of in foreign or of == "super()" or not (node.attr in defined or of in python):
                yield node.lineno, f"{of}.{node.attr}"


def owner(node: ast.Attribute) -> str:
    """What an attribute is an attribute of: the name at the left end, ``super()``, or ``?``."""
    value = node.value
    while isinstance(value, ast.Attribute):
        value = value.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
        return "super()"
    return value.id if isinstance(value, ast.Name) else "?"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_public_parts_of_dependencies_are_used(path: Path) -> None:
    assert not list(private_uses(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.worker",
        "from ray._raylet import GcsClient",
        "from optuna.storages import _rdb",
        "from ray.core.generated import gcs_pb2",
        "import ray\nray._private.worker",
        "from cdn_tune.distributed.ray import ray\nray._raylet.X",
        "def f(trial): return trial._trial_id",
        "class A(B):\n    def _go(self): super()._go()",
    ],
)
def test_private_parts_are_found(code: str) -> None:
    assert list(private_uses(code))


@pytest.mark.parametrize(
    "code",
    [
        "from __future__ import annotations",
        "import os, torch\ntorch.__version__\nos._exit(0)",
        "class A:\n    def __init__(self): self._x = 1\n    def get(self, other): return self._x + other._x",
        "from cdn_tune.study import _helper",
    ],
)
def test_our_own_are_not(code: str) -> None:
    assert not list(private_uses(code))


def test_exceptions_are_few_and_go_on_without() -> None:
    functions = {
        node.name: node for node in ast.parse(COMPAT.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
    }
    assert len(compat.EXCEPTIONS) <= MOST
    excused = {
        line
        for name in compat.EXCEPTIONS
        for line in range(functions[name].lineno, (functions[name].end_lineno or 0) + 1)
    }
    used = dict(private_uses(COMPAT.read_text("utf-8")))
    assert set(used) <= excused, "a private part is used outside the functions of EXCEPTIONS"
    for name in compat.EXCEPTIONS:
        doc = ast.get_docstring(functions[name]) or ""
        assert "Why: " in doc, name
        assert "Without it: " in doc, name
        assert any(isinstance(node, ast.Try) for node in ast.walk(functions[name])), f"{name}: has no guard"
        first, last = functions[name].lineno, functions[name].end_lineno or 0
        assert any(first <= line <= last for line in used), f"{name}: uses nothing private"
