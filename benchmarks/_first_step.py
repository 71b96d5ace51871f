"""The command ``cdn-tune search`` with a note of when each trial makes its first step.

``python -m benchmarks._first_step SPACE [KEY=VALUE]... --run DIR``, as the command itself.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from cdn_tune.config import Experiment
from cdn_tune.training.reports import Report

STAMPS = "stamps"  # in a trial's folder: when its training was called, made its first step, and ended


def stamped(experiment: Experiment, folder: Path, report: Report, **options: object) -> None:
    """Trains, and notes when it was called, when it made its first step, and when it ended."""
    from cdn_tune.training.train_trial import train_in

    moments = [time.time()]

    def on_step(_: object) -> None:
        if len(moments) == 1:
            moments.append(time.time())

    train_in(experiment, folder, report, on_step, **options)  # type: ignore[arg-type]
    (folder / STAMPS).write_text(f"{moments[0]} {moments[1]} {time.time()}")


def main() -> None:
    """Runs the command line of this process as that of ``cdn-tune search``."""
    from benchmarks._first_step import stamped as train  # as workers import it
    from cdn_tune import cli
    from cdn_tune.cli.search import start

    start.run_search = partial(start.run_search, train=train)  # type: ignore[assignment]
    sys.argv[1:1] = ["search"]
    cli.main()


if __name__ == "__main__":
    main()
