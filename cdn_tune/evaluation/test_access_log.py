"""looks.jsonl: every opening of a run's test split, recorded before it is opened."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cdn_tune.training.object_store.sync import push_run
from cdn_tune.training.runs.files import write_text

LOOKS = "looks.jsonl"


def count_looks(run: Path) -> int:
    """Returns how often the run's test split was opened; evaluations of earlier versions count by their files."""
    path = run / LOOKS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return max(sum(bool(line.strip()) for line in lines), len(list(run.glob("evaluation*.json"))))


def record_look(run: Path, facts: dict[str, Any]) -> int:
    """Records that the test split is about to be opened.

    Args:
        run: The locked run folder.
        facts: What is going to be measured, ready for JSON.

    Returns:
        How often it was opened, this time included.

    Raises:
        RunError: If it cannot be written; then nothing may be opened.
    """
    looks = count_looks(run) + 1
    path = run / LOOKS
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    entry = {"look": looks, "opened": datetime.now(timezone.utc).isoformat(timespec="seconds"), **facts}
    write_text(path, before + json.dumps(entry, ensure_ascii=False) + "\n")
    push_run(path)  # where the run lives elsewhere, it is recorded there before anything is opened
    return looks
