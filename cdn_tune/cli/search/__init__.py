"""`cdn-tune search`: a search started, stopped, and how it stands."""

from __future__ import annotations

from typing import Any

from cdn_tune.cli.app import Commands, InOrder, app

START = "start"


class _StartUnlessNamed(InOrder):
    """Takes ``search SPACE`` for ``search start SPACE``: what is no command of its own is a search space."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._named(args))  # --help is the search's, too

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, self._named(args))
        return ("" if name == START else name), command, rest

    def _named(self, args: list[str]) -> list[str]:
        return args if args and args[0] in self.commands else [START, *args]


search_app = Commands(
    cls=_StartUnlessNamed, help="Search for the best configuration with Ray Tune and Optuna.", no_args_is_help=False
)
app.add_typer(search_app, name="search")
