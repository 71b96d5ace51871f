"""The commands, as typer sees them: parse and hand over."""

import sys

from cdn_tune.cli import cluster, compare, data, evaluate, leaderboard, predict, report, schema, search, train
from cdn_tune.cli.app import app

__all__ = [
    "app",
    "cluster",
    "compare",
    "data",
    "evaluate",
    "leaderboard",
    "main",
    "predict",
    "report",
    "schema",
    "search",
    "train",
]


def main() -> None:
    """The entry point."""
    app(cluster.as_job(sys.argv[1:]))
