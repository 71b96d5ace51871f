"""Fencing: of two processes that train one trial, only the later one may write.

A trial restarted elsewhere may meet its old process again, when a network heals or a frozen machine wakes up; a file
lock does not reach across machines. So each attempt leaves a token when it begins, and looks for it before it writes.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdn_tune.errors import RunError
from cdn_tune.training.object_store.working_copy import place_of
from cdn_tune.training.runs.files import write_atomic

ATTEMPT = ".attempt"
POSITION = ".position.json"  # which state the last checkpoint of a trial at home holds
LOCK = ".training"  # held by the process that trains in a folder, against others on its machine


class Superseded(RunError):  # noqa: N818 - as our other errors
    """Another process has begun to train this trial; this one's results are not wanted any more."""


class Attempt:
    """One process's right to write a trial's folder, and its folder at home, until the next attempt takes it.

    Args:
        folder: The trial's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(8)
        self._folder, self._place = folder, place_of(folder)

    def claim(self) -> None:
        """Takes the right away from every earlier attempt.

        Raises:
            RunError: If the token cannot be written.
        """
        content = self.token.encode()
        if self._place is not None:
            self._place.home.write(self._place.named(ATTEMPT), content)
        else:
            write_atomic(self._folder / ATTEMPT, lambda file: file.write(content))

    def check(self) -> None:
        """Does nothing as long as no later attempt has begun.

        Raises:
            Superseded: If one has, or the trial was given up.
            RunError: If it cannot be told.
        """
        if self._held() != self.token.encode():
            raise Superseded(
                f"{self._folder}: another process has taken this trial over, or it was given up; this one, which was "
                "lost from sight meanwhile, writes no more"
            )

    def saved(self, epoch: int, step: int, history: Sequence[dict[str, Any]]) -> None:
        """Does nothing: the folder is all there is."""

    def finish(self) -> None:
        """Does nothing: the folder is all there is."""

    def _held(self) -> bytes | None:
        if self._place is not None:
            return self._place.home.read(self._place.named(ATTEMPT))
        try:
            return (self._folder / ATTEMPT).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{self._folder / ATTEMPT}: cannot be read ({error.strerror}); mend the disk") from None
