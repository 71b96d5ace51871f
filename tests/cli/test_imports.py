"""What reads a search, or only its command line, starts quickly: it imports nothing heavy that it does not use."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SCRIPT = """
import json, sys
from typer.testing import CliRunner
from cdn_tune.cli import app

for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output)
    loaded = {"torch", "ray", "sqlalchemy", "fsspec"} & sys.modules.keys()
    assert not loaded, f"{arguments} imports {loaded}"
"""


def test_reading_a_search_imports_neither_torch_nor_ray_nor_a_database_library(
    make_search: Callable[..., Path], entry: Callable[..., Any]
) -> None:
    run = str(make_search([entry("complete", [0.2, 0.4]), entry("complete", [0.3], lr=1e-2), entry("running", [0.1])]))
    helps = [["--help"], ["train", "--help"], ["search", "--help"], ["evaluate", "--help"], ["predict", "--help"]]
    reading = [["search", "status", run], ["search", "status", run, "--json"], ["search", "stop", run]]
    board = ["leaderboard", run]
    reading += [board, [*board, "--json"], [*board, "--csv"], [*board, "--importance"], [*board, "--config", "0"]]
    reading += [["runs", str(Path(run).parent)], ["runs", run, "--json"], ["runs", run, "--sort", "val"]]
    commands = [*helps, ["schema", "space"], ["schema", "experiment"], *reading]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(commands)], capture_output=True, text=True, env=os.environ.copy()
    )
    assert done.returncode == 0, done.stderr
