"""A kept checkpoint: a trial's best model in a folder of its own, with its experiment and its record."""

import contextlib
import errno
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdn_tune.config.yaml import dump
from cdn_tune.data.files import read_json, sync_folder
from cdn_tune.errors import CheckpointError
from cdn_tune.training.runs.files import write_errors, write_json, write_text
from cdn_tune.training.runs.run_folder import EXPERIMENT

KEPT = "best"
CHECKPOINT = "checkpoint.pt"
RECORD = "record.json"
TEMPORARY = f".{CHECKPOINT}.tmp"
# Errors of a disk, a file server or a limit; a damaged file causes an invalid argument at most.
_ELSEWHERE = {getattr(errno, name) for name in ("EIO", "ESTALE", "EACCES", "EPERM", "ETIMEDOUT", "EMFILE", "ENOMEM")}


@dataclass(frozen=True)
class KeptRecord:
    """Figures of a kept checkpoint.

    A trial that is stopped early may have finished another, better epoch meanwhile. The study's figures then stay what
    was reported, and rank; the checkpoint's own describe the model in the file.
    """

    trial: int  # the trial's number
    value: float  # its best val metric in the study
    epoch: int | None  # the epoch of that, in the study
    checkpoint_epoch: int  # after which epoch the kept model was saved
    checkpoint_value: float | None  # its val metric; None if it was not measured

    @property
    def agrees(self) -> bool:
        """Whether the kept model is the one of the study's epoch."""
        return self.epoch is None or self.epoch == self.checkpoint_epoch


def kept_folder(run: Path, number: int) -> Path:
    """Returns the folder of a trial's kept checkpoint."""
    return run / KEPT / f"trial-{number:04d}"


def keep_checkpoint(source: Path, folder: Path, number: int, value: float, epoch: int | None) -> KeptRecord:
    """Keeps a checkpoint in a folder, durably: once this returns, `source` may be deleted.

    Everything else in the folder is written before the checkpoint appears in it; a folder without one is half written.

    Args:
        source: The trial's best checkpoint; it is linked, or copied where there are no hard links.
        folder: Where it is kept.
        number: The trial's number.
        value: Its best val metric in the study.
        epoch: The epoch of that, if recorded.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged; nothing is written.
        OSError: If the checkpoint cannot be read for another reason.
        RunError: If the folder cannot be written.
    """
    content = _read(source)
    record = _record(content, number, value, epoch)
    write_text(folder / EXPERIMENT, dump(content["experiment"]))
    write_json(folder / RECORD, asdict(record))
    temporary = folder / TEMPORARY
    with write_errors(folder / CHECKPOINT):
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)  # its bytes were flushed when it was written
        except OSError:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(folder / CHECKPOINT)
        for changed in (folder, folder.parent, folder.parent.parent):
            sync_folder(changed)
    return record


def check_kept(folder: Path, number: int, value: float, epoch: int | None) -> KeptRecord:
    """Reads a kept checkpoint through, and returns its record with the study's present figures.

    Raises:
        CheckpointError: If it is missing or damaged.
        OSError: If it cannot be read for another reason.
    """
    return _record(_read(folder / CHECKPOINT), number, value, epoch)


def recorded_value(folder: Path) -> float | None:
    """Returns the study's value of a kept checkpoint; None if the folder has no readable record."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        return float(read_json(folder / RECORD)["value"])
    return None


def _record(content: dict[str, Any], number: int, value: float, epoch: int | None) -> KeptRecord:
    metric = content["experiment"]["eval"]["metric"]
    return KeptRecord(number, value, epoch, content["epoch"], content["val"].get(metric))


def _read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; raises OSError if it cannot be read just now, CheckpointError if it is damaged."""
    from cdn_tune.training.runs.checkpoint import read_model  # torch, which reading a search does not need

    try:
        return read_model(path)
    except CheckpointError as error:
        reason = error.__context__
        if isinstance(reason, OSError) and reason.errno in _ELSEWHERE:
            raise reason from None
        raise
