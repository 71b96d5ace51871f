"""A bug report: versions, machine, and what a run has recorded of itself and of its failures, without secrets.

A run may be a stranger's, and the report is made to be sent: no link is followed out of the run folder, each part has
its most characters, and text is masked before it is cut.
"""

import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path

from cdn_tune import __version__
from cdn_tune.cli.show.output import log_text, size_text
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.data.cache import user_cache
from cdn_tune.data.files import brief, parse_json
from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.training.runs.masking import Masking
from cdn_tune.training.runs.run_folder import EXPERIMENT, MANIFEST, SPACE, git_commit
from cdn_tune.tuning.layout import RAY_LOG, TRIALS

ERROR = "error.txt"  # of a failed trial
_PACKAGES = (
    *("torch", "triton", "torchtext", "numpy", "scipy", "h5py", "ray", "optuna", "pydantic", "typer", "rich"),
    *("pyarrow", "tensorboard", "transformers", "SQLAlchemy"),
)
_VARIABLES = ("CDN_TUNE_", "RAY_", "CUDA_", "OMP_")
_PART, _LOG, _TRACEBACK = 8_000, 8_000, 3_000  # characters
_WHOLE = 60_000  # fits into an issue
_TRIALS = 5  # whose errors are shown, the last ones
_MOST_TRIALS = 10_000  # that are looked through
_LARGEST = 1 << 20  # bytes of a manifest
_CUT = "(cut: {:,} characters more)"
_TOP = """# cdn-tune bug report

<!-- Read this before you send it: secrets are masked as far as they can be told from other text. -->

**What I ran, what I expected, and what happened instead:**

"""


def bug_report(run: Path | None = None, masking: Masking | None = None) -> str:
    """Returns a bug report in Markdown, of at most 60,000 characters.

    Args:
        run: Folder of the run that it is about, which may be damaged; none if None.
        masking: Of the user and the environment; of those of this process if None.

    Raises:
        RunError: If there is no such folder.
    """
    if run is not None and not run.is_dir():
        raise RunError(f"{run}: no such run folder; name one, or leave it out")
    masking = masking or Masking()
    found, room = [_TOP], _WHOLE - len(_TOP)
    for title, most, at_end, make in _parts(run, masking):
        try:
            text = make()
        except (CdnTuneError, OSError, ValueError) as error:
            text = f"cannot be read: {brief(error, 300)}"
        except Exception as error:  # what is broken is what the report is about
            text = f"cannot be read: {type(error).__name__}: {brief(error, 300)}"
        title, text = (log_text(masking.text(each)) for each in (title, text))
        part = _fenced(" ".join(title.split()), _cut(text.strip("\n"), most, at_end))
        if len(part) > room:
            found.append("(what would follow is left out: the report is long enough)\n")
            break
        found.append(part)
        room -= len(part)
    return "".join(found)


def _parts(run: Path | None, masking: Masking) -> Iterator[tuple[str, int, bool, Callable[[], str]]]:
    """Yields each part: its title, its most characters, whether its end is kept if there are more, how it is made."""
    yield "Versions", _PART, False, _versions
    yield "GPU", _PART, False, _gpu
    yield "Disk", _PART, False, partial(_disks, run)
    yield "Environment", _PART, False, partial(_environment, masking)
    if run is None:
        return
    yield "Run", _PART, False, partial(_state, run)
    yield MANIFEST, _PART, False, partial(_settings, run, MANIFEST, masking)
    for name in (EXPERIMENT, SPACE):
        if (run / name).exists():
            yield name, _PART, False, partial(_settings, run, name, masking)
    if (run / RAY_LOG).exists():
        yield f"{RAY_LOG}, its end", _LOG, True, partial(_end, run, run / RAY_LOG, _LOG)
    errors = sorted(islice((run / TRIALS).glob(f"*/{ERROR}"), _MOST_TRIALS))
    for path in reversed(errors[-_TRIALS:]):
        yield f"{TRIALS}/{path.parent.name}/{ERROR}", _TRACEBACK, True, partial(_end, run, path, _TRACEBACK)


def _versions() -> str:
    lines = [f"cdn-tune {__version__}, commit {git_commit() or 'unknown'}"]
    lines += [f"Python {platform.python_version()} ({sys.implementation.name})", platform.platform()]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(lines)


def _gpu() -> str:
    from cdn_tune.cli.machine import machine_lines
    from cdn_tune.training.kernels.diagnose import diagnose

    return "\n".join(machine_lines(diagnose()))


def _disks(run: Path | None) -> str:
    places = {"run" if run else "here": run or Path(), "cache": user_cache(), "temporary": Path(tempfile.gettempdir())}
    lines = []
    for name, path in places.items():
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        disk = shutil.disk_usage(there)
        lines.append(f"{name}: {size_text(disk.free)} of {size_text(disk.total)} free ({path.absolute()})")
    return "\n".join(lines)


def _environment(masking: Masking) -> str:
    found = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
    return "\n".join(f"{name}={value}" for name, value in masking.plain(found).items()) or "nothing of ours is set"


def _state(run: Path) -> str:
    from cdn_tune.cli.show.tables import counts_line, failure_lines
    from cdn_tune.evaluation.runs import UNREADABLE, summarise_run
    from cdn_tune.tuning.results.leaderboard import filled
    from cdn_tune.tuning.results.record import read_record

    row = summarise_run(run)
    lines = [f"{name}: {value}" for name, value in filled(row).items()]
    if row["kind"] == "search" and row["state"] != UNREADABLE:
        rows = read_record(run).rows()
        lines += [counts_line(rows), *failure_lines(rows)]
    return "\n".join(lines)


def _settings(run: Path, name: str, masking: Masking) -> str:
    """Returns the values of a file of JSON or YAML, as YAML."""
    path = _inside(run, run / name)
    if path.suffix == ".yaml":
        return dump(masking.plain(read_mapping(path)))
    if path.stat().st_size > _LARGEST:
        raise RunError(f"{name}: is larger than {_LARGEST >> 20} MiB, as no run's is")
    return dump(masking.plain({"": parse_json(path.read_bytes())})[""])


def _end(run: Path, path: Path, most: int) -> str:
    """Returns the last lines of a text file, more than `most` characters if there are."""
    with _inside(run, path).open("rb") as file:
        size, read = os.fstat(file.fileno()).st_size, 4 * most
        file.seek(max(size - read, 0))
        text = file.read(read).decode("utf-8", "replace")
    return text if size <= read else text.partition("\n")[2]  # the first line may have lost what shows a secret


def _inside(run: Path, path: Path) -> Path:
    """Returns a file of a run folder.

    Raises:
        RunError: If it is no file, or a link that leads elsewhere: the report would then show a file of the user's.
    """
    if not path.resolve().is_relative_to(run.resolve()):
        raise RunError(f"{path.name}: is a link that leads out of the run folder; it is not read")
    if not stat.S_ISREG(path.stat().st_mode):
        raise RunError(f"{path.name}: is no regular file; it is not read")
    return path


def _cut(text: str, most: int, at_end: bool) -> str:
    """Returns the first, or the last, lines of a text that are `most` characters."""
    if len(text) <= most:
        return text
    note = _CUT.format(len(text) - most)
    if at_end:
        return f"{note}\n{text[-most:].partition(chr(10))[2]}"
    return f"{text[:most].rpartition(chr(10))[0]}\n{note}"


def _fenced(title: str, text: str) -> str:
    """Returns a part in a fence longer than any in it, so that nothing in it is Markdown."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"## {title}\n\n{fence}text\n{text}\n{fence}\n\n"
