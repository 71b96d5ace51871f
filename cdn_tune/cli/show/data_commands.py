"""What `cdn-tune data` does, in words of the data package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.progress import Progress

from cdn_tune.cli.show.output import err, one_line_errors, out
from cdn_tune.config import DataConfig
from cdn_tune.data.dataset import load_splits
from cdn_tune.errors import DataError


def build_clips(config: DataConfig) -> None:
    """Builds the node's clip cache for the train and val splits where it is not there yet, with a progress bar.

    Raises:
        DataError: If the data cannot be used.
    """
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("building the clip cache", total=None, visible=False)
        load_splits(
            config,
            ("train", "val"),
            lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )


def run_doctor(root: Path, json_file: Path | None, **options: Any) -> None:
    """`cdn-tune data doctor`."""
    from cdn_tune.cli.show.doctor import fact_lines, findings_table, verdict
    from cdn_tune.data.doctor import examine

    with one_line_errors():
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("reading features", total=None)
            report = examine(
                root,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
                **options,
            )
        if json_file is not None:
            try:
                json_file.write_text(json.dumps(report.plain(), indent=2) + "\n", encoding="utf-8")
            except OSError as error:
                raise DataError(f"--json {json_file}: {error.strerror}; choose a file that can be written") from None
        for line in fact_lines(report):
            out.print(line, markup=False, soft_wrap=True)
        if report.findings:
            out.print(findings_table(report.findings))
        out.print(verdict(report), style="bold red" if report.fails else "bold green", markup=False)
        if report.fails:
            raise typer.Exit(DataError.exit_code)


def run_convert(source: Path, target: Path, form: str, workers: int | None) -> None:
    """`cdn-tune data convert`."""
    from cdn_tune.data.convert import convert

    with one_line_errors():
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("reading", total=None)
            result = convert(
                source,
                target,
                form,
                workers,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        resumed = f", {result.resumed} of them read before" if result.resumed else ""
        text = f"{result.path}: {result.videos} videos, size {result.size}, verified{resumed}"
        out.print(text, markup=False, soft_wrap=True)


def run_plant(folder: Path, preset_name: str | None, difficulty: dict[str, Any], **options: Any) -> None:
    """`cdn-tune data plant`; options that are None are the preset's, or the usual ones."""
    from cdn_tune.data.planted import plant
    from cdn_tune.data.planted.planting import preset

    with one_line_errors():
        given = {name: value for name, value in difficulty.items() if value is not None}
        options |= {**(preset(preset_name) if preset_name else {}), **given}
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("planting", total=None)
            plant(folder, progress=lambda done, total: progress.update(task, completed=done, total=total), **options)
    out.print(f"planted data in {folder}", markup=False, soft_wrap=True)
