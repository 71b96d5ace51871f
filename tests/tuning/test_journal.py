"""The run folder's journal: whole decisions or nothing of them, whatever happens to the file or its writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cdn_tune.errors import RunError
from cdn_tune.tuning.storage.journal import RunJournal
from cdn_tune.tuning.study.filtered_study import StoredStudy, stored_study


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal's file."""
    return tmp_path / "study.journal"


def open_study(path: Path) -> StoredStudy:
    """Opens a study as a new process does."""
    return stored_study(RunJournal(path), "s", ["maximize"], optuna.samplers.RandomSampler(seed=0))


def decide(study: StoredStudy) -> int:
    """Records a trial's creation, parameter, attribute and report in one transaction; returns its number."""
    with study.transaction():
        trial = study.ask()
        trial.suggest_float("lr", 0, 1)
        study.set_attributes(trial.number, {"epoch": 1})
        with study.transaction():  # is part of the one around it
            study.report(trial.number, 1, 0.5)
    return trial.number


def as_optuna_reads(path: Path) -> optuna.Study:
    """Opens the study as its users do."""
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))


def test_optuna_reads_and_continues_the_file(path: Path) -> None:
    study = open_study(path)
    study.tell(decide(study), 0.5)
    decide(study)
    theirs = as_optuna_reads(path)
    assert theirs.get_trials() == study.get_trials() == open_study(path).get_trials()
    theirs.tell(1, 0.75)
    theirs.set_user_attr("note", "from outside")
    assert study.trial(1).value == 0.75
    assert decide(study) == 2
    assert study.user_attrs == {"note": "from outside"}
    assert as_optuna_reads(path).get_trials() == open_study(path).get_trials() == study.get_trials()


def test_a_transaction_is_one_write_and_one_flush(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(path)
    before = path.read_bytes()
    calls = []
    for name in ("write", "fsync"):

        def counted(call: Any, *arguments: Any) -> Any:
            calls.append(call.__name__)
            return call(*arguments)

        monkeypatch.setattr(os, name, partial(counted, getattr(os, name)))
    with study.transaction():
        number = study.ask().number
        study.report(number, 1, 0.5)
        assert study.trial(number).intermediate_values == {1: 0.5}  # visible here at once
        assert path.read_bytes() == before
    assert calls == ["write", "fsync"]
    assert as_optuna_reads(path).get_trials() == study.get_trials()
    with study.transaction():
        assert study.get_trials()
    assert calls == ["write", "fsync"]  # nothing was written, nothing is flushed


def test_a_block_that_raises_leaves_nothing(path: Path) -> None:
    study = open_study(path)
    decide(study)
    before = path.read_bytes()

    def broken() -> None:
        with study.transaction():
            study.tell(0, 1.0)
            with study.transaction():
                study.ask()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert path.read_bytes() == before
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING]
    assert decide(study) == 1
    assert open_study(path).get_trials() == study.get_trials()


def test_wherever_the_file_is_torn_whole_decisions_are_left(path: Path) -> None:
    study = open_study(path)
    empty = path.stat().st_size
    decide(study)
    first = path.stat().st_size
    decide(study)
    content = path.read_bytes()
    whole = {0: 0, empty: 0, first: 1, len(content): 2}  # trials by size
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        again = RunJournal(path)
        assert path.stat().st_size == max(size for size in whole if size <= end)
        if end >= empty:
            assert len(again.get_all_trials(0)) == whole[path.stat().st_size]
    path.write_bytes(content[:-9] + b"\0" * 100)  # as after a power cut
    assert decide(open_study(path)) == 1
    assert len(as_optuna_reads(path).get_trials()) == 2


def test_what_is_no_journal_is_left_as_it_is(path: Path) -> None:
    path.write_text("dear diary\nnothing happened")
    with pytest.raises(ValueError, match="no log"):
        RunJournal(path)
    assert path.read_text() == "dear diary\nnothing happened"


def test_a_full_disk_is_reported_and_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(path)
    decide(study)
    before, write = path.read_bytes(), os.write

    def full(file: int, content: bytes) -> int:
        if len(content) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:-40])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RunError, match=r"study.journal: cannot be written \(No space left on device\); make room"):
            decide(study)
        with pytest.raises(RunError, match="make room"):
            study.set_user_attr("a", 1)
    assert path.read_bytes() == before
    assert len(study.get_trials()) == 1
    assert decide(study) == 1
    assert open_study(path).get_trials() == study.get_trials()


def test_what_others_write_during_a_transaction(path: Path) -> None:
    """Notes are kept; a trial would have the number of ours, so that ours is undone."""
    study = open_study(path)
    other = as_optuna_reads(path)
    with study.transaction():
        number = study.ask().number
        other.set_user_attr("note", "from outside")
    assert (study.user_attrs, len(study.get_trials())) == ({"note": "from outside"}, 1)

    def clash() -> None:
        with study.transaction():
            study.ask()
            other.enqueue_trial({"lr": 0.5})

    with pytest.raises(RunError, match="another program has added a trial"):
        clash()
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING, TrialState.WAITING]
    assert number == 0
    assert as_optuna_reads(path).get_trials() == study.get_trials()


def test_a_killed_writer_loses_no_decision_that_it_has_announced(path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "import test_journal\n"
        "study = test_journal.open_study(Path(sys.argv[1]))\n"
        "while True:\n"
        "    print(test_journal.decide(study), flush=True)\n"
    )
    tests = str(Path(__file__).parent)
    writer = subprocess.Popen([sys.executable, "-c", code, str(path), tests], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= 20:
            break
    writer.send_signal(signal.SIGKILL)
    announced = [20, *map(int, writer.stdout.read().split())]
    writer.stdout.close()
    writer.wait(timeout=60)
    trials = open_study(path).get_trials()
    assert len(trials) in (announced[-1] + 1, announced[-1] + 2)
    assert {(trial.state, tuple(trial.intermediate_values.items())) for trial in trials} == {
        (TrialState.RUNNING, ((1, 0.5),))
    }
