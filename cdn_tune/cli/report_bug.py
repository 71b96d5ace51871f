"""`cdn-tune report-bug`: what a bug report needs, without secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import local_run
from cdn_tune.cli.show.output import err, print_line, print_note, print_text
from cdn_tune.errors import ConfigError


@app.command(
    name="report-bug",
    epilog="Examples: cdn-tune report-bug runs/charades-quick --out bug.md; cdn-tune report-bug > bug.md",
)
def report_bug(
    run: Annotated[Path | None, Argument(metavar="RUN", help="Folder of the run that it is about, or its URL.")] = None,
    file: Annotated[
        Path | None,
        Option("--out", metavar="FILE", help="Write it there.", show_default="standard output"),
    ] = None,
) -> None:
    """Print what a bug report needs: versions, GPU, disks, and a run's manifest, configuration, log and errors.

    Secrets, the user's name and home folder are masked, and nothing is sent: read it, then add it to your issue.
    """
    from cdn_tune.cli.show.bug_report import bug_report
    from cdn_tune.training.runs.files import write_text

    if file is not None and file.is_dir():
        raise ConfigError(f"--out {file}: is a folder; name the file to write")
    with err.status("collecting"):
        text = bug_report(None if run is None else local_run(run, trials=True))
    if file is None:
        print_text(text)
    else:
        write_text(file, text)
        print_line(f"bug report: {file}")
    print_note("read it before you send it; what is secret was masked as far as it can be told from other text")
