"""The run folder's own study: a journal in Optuna's format with a single writer, one write and one flush a decision.

Every line is a log of Optuna's `JournalStorage`, so that its own `JournalFileBackend` reads the file. All lines of a
transaction but the last end with a space, which JSON ignores: what a killed writer or a full disk has left of a
transaction is found by it and cut off when the file is opened for writing the next time.
"""

import contextlib
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from cdn_tune.data.files import parse_json
from cdn_tune.errors import RunError
from cdn_tune.tuning.storage.delegate import DelegatingStorage

_START = b'{"op_code"'  # of every log


class RunJournal(DelegatingStorage):
    """Optuna's storage in a journal that this process alone writes trials to.

    Args:
        path: The file; created where it does not exist. The caller holds the run folder.

    Raises:
        ValueError: If the file is no journal; it is left as it is.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._journal = SoleWriterBackend(path)
        super().__init__(JournalStorage(self._journal))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Writes what the block records in one piece at its end; nothing of it if the block raises.

        Within the block this process reads what it has recorded. A transaction within another is part of it.
        """
        if self._journal.in_batch:
            yield
            return
        try:
            with self._journal.batch():
                yield
        except BaseException:
            self.behind = JournalStorage(self._journal)  # as it is on file
            raise


def is_journal(content: bytes) -> bool:
    """Whether a file's content is that of a journal, as far as its start shows; an empty one's may be."""
    return _START.startswith(content[: len(_START)])


class SoleWriterBackend(BaseJournalBackend):
    """A journal's file, kept open by the one process that writes trials to it, for one reader.

    Other programs may append notes meanwhile (optuna-dashboard does); they are read before the next transaction.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        weakref.finalize(self, os.close, self._file)
        self._batch: list[str] | None = None
        self._logs: list[dict[str, Any]] = []  # from number `_first` on
        self._first = self._size = 0  # `_size`: bytes of the file that were read or written
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        if not is_journal(content):
            raise ValueError("its first line is no log")
        end = len(content)
        while end and (content[end - 1 : end] != b"\n" or content[end - 2 : end] == b" \n"):
            end = content.rfind(b"\n", 0, end - 1) + 1
        if end < len(content):
            os.ftruncate(self._file, end)

    @property
    def in_batch(self) -> bool:
        """Whether logs are held back."""
        return self._batch is not None

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Returns the logs from a number on, also those that are held back; earlier ones are forgotten."""
        if not self.in_batch:
            self._logs += self._read()
        del self._logs[: log_number_from - self._first]
        self._first = log_number_from
        return list(self._logs)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes logs, or holds them back within a batch.

        Raises:
            RunError: If the file cannot be written.
        """
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        if self._batch is None:
            self._logs += self._read()
            self._write(lines)
        else:
            self._batch += lines
        self._logs += map(json.loads, lines)  # as a reader of the file has them

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Holds the block's logs back and writes them at its end; if it raises, logs are read from the start again.

        Raises:
            RunError: If the file cannot be written, or another program has added a trial during the block, whose
                place the held logs assume to be theirs.
        """
        self._logs += self._read()
        lines: list[str] = []
        self._batch = lines
        try:
            yield
            self._batch = None
            others = self._read()
            if any("study_id" in log and "datetime_start" in log for log in others):
                raise RunError(
                    f"{self._path}: another program has added a trial to this study while the search wrote to it; stop "
                    "that program, and the same command goes on"
                )
            self._logs += others  # notes, in whichever order
            if lines:
                self._write(lines)
        except BaseException:
            self._batch, self._logs, self._first, self._size = None, [], 0, 0
            raise

    def _read(self) -> list[dict[str, Any]]:
        """Returns the whole lines that have come to the file since it was last read or written."""
        content = os.pread(self._file, max(0, os.fstat(self._file).st_size - self._size), self._size)
        whole = content[: content.rfind(b"\n") + 1]
        self._size += len(whole)
        return [parse_json(line) for line in whole.splitlines()]

    def _write(self, lines: list[str]) -> None:
        if not self._is_here():
            raise RunError(
                f"{self._path}: is gone, it was deleted or moved while the search ran; put it back, and the same "
                "command goes on, or search in another --run folder"
            )
        content = rest = (" \n".join(lines) + "\n").encode()
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise RunError(
                f"{self._path}: cannot be written ({error.strerror}); make room or mend the file system, and the same "
                "command goes on"
            ) from None
        self._size += len(content)

    def _is_here(self) -> bool:
        """Whether the file that is held open is still the one of its name: a deleted one can be written, in vain."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except OSError:
            return False
