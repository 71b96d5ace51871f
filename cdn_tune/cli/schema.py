"""`cdn-tune schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from cdn_tune.cli.app import app


@app.command(epilog="Example: cdn-tune schema space > search_spaces/schema.json")
def schema(kind: Annotated[str, typer.Argument(metavar="experiment|space", help="Of which files.")]) -> None:
    """Print the JSON Schema by which editors complete and check YAML files.

    A file names it in a line `# yaml-language-server: $schema=FILE`, as the shipped ones do.
    """
    from cdn_tune.cli.show.schema import run_schema

    run_schema(kind)
