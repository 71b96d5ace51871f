"""The application that the commands of this package join, and the arguments they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cdn_tune import __version__

_ORDER = (
    *(
        "demo",
        "train",
        "search",
        "leaderboard",
        "evaluate",
        "compare",
        "report",
        "predict",
        "export",
        "cluster",
        "data",
    ),
)


class _InOrder(TyperGroup):
    """Lists the commands in the order in which a newcomer meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


app = typer.Typer(
    cls=_InOrder,
    help="Hyperparameter search for CDN video moment retrieval, on a laptop or on a Ray cluster.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    help="Look after data: examine a folder, convert features, plant a synthetic dataset.", no_args_is_help=True
)
app.add_typer(data_app, name="data")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Dotted keys of the experiment, e.g. optim.lr=3e-4 model.map.layers=4"
    ),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="DIR",
        help="Run folder, or its URL on an object store: s3://BUCKET/NAME, gs://, abfs://.",
        show_default="runs/<name>",
        dir_okay=True,
    ),
]

AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDR",
        help="Ray cluster to join: auto or HOST:PORT; http://HOST:8265 and ray://HOST:10001 run it there as a job.",
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"cdn-tune {__version__}")
        raise typer.Exit
