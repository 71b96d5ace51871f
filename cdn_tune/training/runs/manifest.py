"""The manifest: what a run was made of, so that it can be made again."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from cdn_tune import __version__
from cdn_tune.config import Experiment
from cdn_tune.training.runs.secrets import without_secrets

SCHEMA = 1
_PACKAGES = ("torch", "torchtext", "numpy", "h5py", "ray", "optuna")


def describe_run(kind: str, experiment: Experiment, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest of a run.

    Args:
        kind: ``train`` or ``search``.
        experiment: The resolved experiment (of a search: its base).
        data: Fingerprint of the data.
    """
    return {
        "schema": SCHEMA,
        "kind": kind,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cdn_tune": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "command": [Path(sys.argv[0]).name, *map(without_secrets, sys.argv[1:])],
        "seed": experiment.seed,
        "experiment": experiment.plain(),
        "data": data,
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout that cdn-tune runs from, with ``+changes`` if it is modified; else None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
