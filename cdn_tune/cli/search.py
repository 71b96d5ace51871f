"""`cdn-tune search`, and `search stop`, `search status` of a running one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cdn_tune.cli.app import AddressOption, Overrides, RunOption, app

_START = "start"


class _StartUnlessNamed(TyperGroup):
    """Takes ``search SPACE`` for ``search start SPACE``: what is no command of its own is a search space."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in self.commands and args[0] != _START
        return super().parse_args(ctx, args if named else [_START, *args])  # --help is the search's, too

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == _START else name), command, rest


search_app = typer.Typer(
    cls=_StartUnlessNamed, help="Search for the best configuration with Ray Tune and Optuna.", no_args_is_help=False
)
app.add_typer(search_app, name="search")


@search_app.command(
    name=_START,
    hidden=True,
    epilog="Example: cdn-tune search search_spaces/charades-quick.yaml data.root=/data/charades --trials 20. "
    "Of a search under way: cdn-tune search status RUN, cdn-tune search stop RUN.",
)
def start(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="Search space YAML, or a shipped one's path.")],
    overrides: Overrides = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trials in all, in place of the space's; raise it to go on with a finished search."),
    ] = None,
    add_trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="N trials more than were asked for before.")
    ] = None,
    run: RunOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search that RUN holds, without asking; it must hold one.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed trials again.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the space, what trials cost and what would be refused, and stop.")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the study lives: sqlite:///FILE, postgresql://..., mysql://..., journal:///FILE.",
            show_default="RUN/study.journal",
        ),
    ] = None,
    warm_start: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Learn from the results of another search.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0.0, help="Hours of searching, over all starts.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(min=0.0, help="GPU-hours of all trials.")] = None,
    target: Annotated[float | None, typer.Option(help="Val metric that is good enough.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the search space, e.g. --set sampler.seed=3."),
    ] = None,
    address: AddressOption = None,
) -> None:
    """Search for the best configuration with Ray Tune and Optuna.

    Epochs and trials are chosen on the val split; the best checkpoints are kept under RUN/best/. The same command
    again goes on where it stopped. Ctrl-C once has running trials save a checkpoint; twice leaves at once.
    """
    from cdn_tune.console.search import run_search

    budget = {"budget.hours": hours, "budget.gpu_hours": gpu_hours, "budget.target": target}
    run_search(
        space,
        overrides or [],
        run,
        settings=settings or [],
        budget={key: value for key, value in budget.items() if value is not None},
        plan=plan,
        trials=trials,
        add_trials=add_trials,
        address=address,
        storage=storage,
        resume=resume,
        retry_failed=retry_failed,
        warm_start=tuple(warm_start or ()),
    )


@search_app.command(epilog="Example: cdn-tune search stop runs/charades-quick")
def stop(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of the search.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has stopped.")] = True,
) -> None:
    """Stop a search in order: its trials save a checkpoint, and the same command goes on with it."""
    from cdn_tune.console.search import run_stop

    run_stop(run, wait)


@search_app.command(epilog="Example: cdn-tune search status runs/charades-quick")
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of the search.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="The study's storage, if its URL needs a password.")
    ] = None,
) -> None:
    """Show how a search stands, while it runs (from another terminal) or after."""
    from cdn_tune.console.status import run_status

    run_status(run, json, storage)
