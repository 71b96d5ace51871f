"""The commands, as typer sees them: parse and hand over."""

from cdn_tune.cli import compare, data, evaluate, search, train
from cdn_tune.cli.app import app

__all__ = ["app", "compare", "data", "evaluate", "main", "search", "train"]


def main() -> None:
    """The entry point."""
    app()
