"""The public names: what `cdn_tune` offers, how quickly, and with which types."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cdn_tune

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("pydantic", "numpy", "torch", "optuna", "ray", "pandas", "typer", "rich")


def test_importing_imports_nothing() -> None:
    code = f"import sys, cdn_tune; print(sorted({HEAVY} & sys.modules.keys()), 'train' in dir(cdn_tune))"
    code = code.replace(str(HEAVY), str(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_reading_a_run_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, cdn_tune; cdn_tune.open_run, cdn_tune.Experiment, cdn_tune.load_space, cdn_tune.EpochReport\n"
        "print(sorted({'torch', 'ray', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_has_a_type() -> None:
    assert dir(cdn_tune) == sorted(cdn_tune.__all__)
    for name in cdn_tune.__all__:
        assert getattr(cdn_tune, name) is not None, name
    tree = ast.parse((ROOT / "cdn_tune/__init__.py").read_text())
    (block,) = [each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING"]
    typed = {alias.name for each in block.body if isinstance(each, ast.ImportFrom) for alias in each.names}
    assert typed | {"__version__"} == set(cdn_tune.__all__)
    assert (ROOT / "cdn_tune/py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = cdn_tune.trian  # type: ignore[attr-defined]


def test_every_name_is_documented() -> None:
    """In Google's style: what an argument is stands in ``Args``, or in ``Attributes`` of a class that holds it."""
    import inspect

    for name in cdn_tune.__all__:
        found = getattr(cdn_tune, name)
        if name.startswith("__") or inspect.ismodule(found) or issubclass_of_pydantic(found):
            continue
        text = inspect.getdoc(found) or ""
        assert text, name
        if not inspect.isfunction(found):
            continue
        for argument in inspect.signature(found).parameters:
            assert f"\n    {argument}: " in text, f"{name}: {argument}"


def issubclass_of_pydantic(found: object) -> bool:
    from pydantic import BaseModel

    return isinstance(found, type) and issubclass(found, BaseModel)


@pytest.mark.slow
def test_the_types_of_the_names_and_of_the_examples(tmp_path: Path) -> None:
    """mypy finds no fault in the examples, and one in each line that is wrong."""
    wrong = [
        "cdn_tune.trian('demo/small')",
        "cdn_tune.train(3)",
        "cdn_tune.train('demo/small', wrkers=2)",
        "cdn_tune.search('quick', trials='3')",
        "cdn_tune.open_run('runs/x').bset",
        "cdn_tune.open_run('runs/x').best.value.lower()",
        "cdn_tune.load('runs/x').retrieve(3)",
    ]
    (tmp_path / "wrong.py").write_text("import cdn_tune\n\n" + "\n".join(wrong) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--cache-dir", str(tmp_path / "cache")]
    examples = sorted(map(str, (ROOT / "examples").rglob("*.py")))
    done = subprocess.run(
        [*command, *examples, str(tmp_path / "wrong.py")], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    lines = {line for line in done.stdout.splitlines() if ": error: " in line}
    assert {int(line.split(":")[1]) for line in lines if "wrong.py" in line} == set(range(3, 3 + len(wrong))), lines
    assert not [line for line in lines if "wrong.py" not in line]
