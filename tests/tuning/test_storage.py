"""Storages: each kind is opened, each error is one line without a password, no trial is lost or made twice."""

import gc
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.orm import Session

from cdn_tune.errors import CdnTuneError, ClusterError, ConfigError, RunError
from cdn_tune.training.runs.files import write_new
from cdn_tune.tuning.storage.check import check_storage
from cdn_tune.tuning.storage.open import open_storage, without_secrets
from cdn_tune.tuning.storage.reconnect import ReconnectingStorage, _lost

WORKER = """
import sys, optuna
from cdn_tune.tuning.storage.open import open_storage
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="s", storage=open_storage(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("from", sys.argv[3])
    study.tell(trial, 0.5)
"""


def make_study(storage: optuna.storages.BaseStorage) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(study_name="s", storage=storage, direction="maximize", load_if_exists=True)


def add_from_two_processes(url: str, each: int) -> list[optuna.trial.FrozenTrial]:
    make_study(open_storage(url))
    command = [sys.executable, "-c", WORKER, url, str(each)]
    workers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "ab"]
    for worker in workers:
        _, errors = worker.communicate(timeout=200)
        assert worker.returncode == 0, errors
    return make_study(open_storage(url)).get_trials()


def assert_all_there(trials: list[optuna.trial.FrozenTrial], each: int) -> None:
    assert [trial.number for trial in trials] == list(range(2 * each))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted(trial.user_attrs["from"] for trial in trials) == ["a"] * each + ["b"] * each


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_study_lasts_in_a_file(kind: str, tmp_path: Path) -> None:
    url = f"{kind}:///{tmp_path}/a study.{kind}"
    study = make_study(open_storage(url))
    study.tell(study.ask(), 0.25)
    again = make_study(open_storage(url))
    assert [trial.value for trial in again.get_trials()] == [0.25]
    copied = pickle.loads(pickle.dumps(open_storage(url)))
    assert len(make_study(copied).get_trials()) == 1


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_two_processes_lose_no_trial(kind: str, tmp_path: Path) -> None:
    assert_all_there(add_from_two_processes(f"{kind}:///{tmp_path}/study", 12), 12)


def test_a_killed_maker_leaves_no_file(tmp_path: Path) -> None:
    """A file whose tables lack their indexes takes a study of the same name twice, and is of no use then."""
    url = f"sqlite:///{tmp_path}/study.db"
    tables = 0

    def die(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal tables
        tables += "CREATE TABLE" in statement
        if tables > 1:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", die)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_storage(url)
    finally:
        event.remove(Engine, "before_cursor_execute", die)
    assert list(tmp_path.iterdir()) == []
    first = make_study(open_storage(url))
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        open_storage(url).create_new_study(first.directions, first.study_name)
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_a_file_that_another_made_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.db"
    make_study(open_storage(f"sqlite:///{path}")).add_trial(optuna.trial.create_trial(value=1.0))
    content = path.read_bytes()
    write_new(path, b"another")
    assert path.read_bytes() == content
    path.write_bytes(b"")
    write_new(path, content)
    assert path.read_bytes() == content

    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    write_new(path, b"another")
    write_new(tmp_path / "new.db", content)
    assert path.read_bytes() == (tmp_path / "new.db").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.db", "study.db"]


def test_memory_is_for_tests() -> None:
    assert make_study(open_storage("memory")).get_trials() == []


def damaged(path: Path) -> str:
    path.write_bytes(b"no database at all " * 100)
    return f"sqlite:///{path}"


def truncated(path: Path) -> str:
    study = make_study(open_storage(f"sqlite:///{path}"))
    study.tell(study.ask(), 0.5)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    return f"sqlite:///{path}"


def another_database(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        connection.execute("create table recipes (name text)")
    connection.close()
    return f"sqlite:///{path}"


def another_version(path: Path) -> str:
    make_study(open_storage(f"sqlite:///{path}"))
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = 'v2.6.0.a'")
    connection.close()
    return f"sqlite:///{path}"


def no_journal(path: Path) -> str:
    path.write_text("dear diary\nnothing happened\n")
    return f"journal:///{path}"


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda path: f"redis://{path}", ConfigError, "no such kind; write sqlite:///PATH"),
        (lambda path: str(path), ConfigError, "no such kind"),
        (lambda _: "sqlite://", ConfigError, "names no file"),
        (lambda _: "sqlite:///:memory:", ConfigError, "names no file"),
        (lambda path: f"sqlite:///{path}/study.db", RunError, "there is no folder"),
        (lambda path: f"journal:///{path.parent}", RunError, "is a folder; name a file"),
        (damaged, RunError, "file is not a database"),
        (truncated, RunError, "cannot be used as a study .*malformed"),
        (another_database, RunError, "holds no Optuna study"),
        (another_version, RunError, "another Optuna version; run `optuna storage upgrade"),
        (no_journal, RunError, "is no journal of a study"),
        (lambda _: "mysql+nodriver://u:secret@h/d", ConfigError, "cannot be understood"),
        (lambda _: "postgresql://u:sec{ret@h/d", ConfigError, "percent-encoded"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    make: Callable[[Path], str], error: type[CdnTuneError], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told) as raised:
        open_storage(make(tmp_path / "file"))
    assert "\n" not in str(raised.value)
    assert "sec" not in str(raised.value)


def test_a_folder_that_takes_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(RunError, match="is not writable"):
        open_storage(f"sqlite:///{tmp_path}/study.db")


@pytest.mark.parametrize(("kind", "module"), [("postgresql", "psycopg2"), ("mysql", "pymysql")])
def test_a_missing_driver_is_told_with_its_extra(kind: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"driver is not installed; pip install 'cdn-tune\[{kind}\]'") as raised:
        open_storage(f"{kind}://user:secret@localhost/database")
    assert "secret" not in str(raised.value)


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://user:secret@127.0.0.1:{taken.getsockname()[1]}/database"
        with pytest.raises(ClusterError, match=r"cannot be reached .*is the server running") as raised:
            open_storage(url)
    assert "secret" not in str(raised.value)
    assert "user:***@127.0.0.1" in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql+psycopg2://u:p@ss:w/rd@h:5432/d?x=1", "postgresql+psycopg2://u:***@h:5432/d?x=1"),
        ("mysql://u@h/d?password=p&a=b&ssl_key=k", "mysql://u@h/d?password=***&a=b&ssl_key=***"),
        ("postgresql://:p@h/d", "postgresql://:***@h/d"),
        ("sqlite:////tmp/a@b:c/study.db", "sqlite:////tmp/a@b:c/study.db"),
        ("journal:///study", "journal:///study"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def reconnecting(path: Path, **options: Any) -> ReconnectingStorage:
    return ReconnectingStorage(RDBStorage(f"sqlite:///{path}"), "shown", **options)


def lose(monkeypatch: pytest.MonkeyPatch, times: int, after_commit: bool) -> None:
    """Loses the connection at so many commits: before they take effect, or before their answer arrives."""
    commit = Session.commit
    left = times

    def lossy(session: Session) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            if after_commit:
                commit(session)
            raise OperationalError("commit", None, Exception("server closed the connection unexpectedly"))
        commit(session)

    monkeypatch.setattr(Session, "commit", lossy)


@pytest.mark.parametrize("after_commit", [False, True])
def test_each_operation_takes_effect_once(after_commit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    study = make_study(reconnecting(tmp_path / "study", sleep=pauses.append))
    study.enqueue_trial({"x": 0.5})
    for number in range(2):
        with monkeypatch.context() as patch:
            lose(patch, 2, after_commit)
            trial = study.ask() if number else study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        assert trial.number == number
        with monkeypatch.context() as patch:
            lose(patch, 1, after_commit)
            trial.set_user_attr("a", number)
        with monkeypatch.context() as patch:
            lose(patch, 1, after_commit)
            trial.report(0.5, 1)
        with monkeypatch.context() as patch:
            lose(patch, 1, after_commit)
            study.tell(trial, 0.25)
    read = make_study(RDBStorage(f"sqlite:///{tmp_path}/study")).get_trials()
    assert pauses == 2 * [0.1, 0.2, 0.1, 0.1, 0.1]
    assert [trial.number for trial in read] == [0, 1]
    assert {trial.state for trial in read} == {TrialState.COMPLETE}
    assert [trial.user_attrs for trial in read] == [{"a": 0}, {"a": 1}]
    assert [trial.intermediate_values for trial in read] == [{1: 0.5}] * 2


def test_patience_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    storage = reconnecting(tmp_path / "study", patience=30.0, clock=lambda: now[0], sleep=sleep)
    study = make_study(storage)
    trial = study.ask()
    lose(monkeypatch, 1000, after_commit=False)
    with pytest.raises(ClusterError, match=r"storage shown: has been away for 30 s \(server closed the connection"):
        trial.set_user_attr("a", 1)
    assert 30 < now[0] <= 32


def test_other_errors_are_not_waited_out(tmp_path: Path) -> None:
    storage = reconnecting(tmp_path / "study", sleep=lambda _: pytest.fail("waited"))
    with pytest.raises(KeyError):
        storage.get_trial(99)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_server_holds_a_study(kind: str, request: pytest.FixtureRequest) -> None:
    assert_all_there(add_from_two_processes(request.getfixturevalue(f"{kind}_url"), 25), 25)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the driver's, of a connection refused
def test_mysql_tells_what_is_wrong(mysql_url: str) -> None:
    cases = {
        mysql_url.replace("s3cr", "wr0ng"): "the server refuses the user",
        mysql_url.replace("/study?", "/nowhere?"): "Access denied for user .* to database 'nowhere'",
        f"{mysql_url}x": "cannot be reached",
    }
    for url, told in cases.items():
        with pytest.raises(ClusterError, match=told) as raised:
            open_storage(url)
        assert "w/rd" not in str(raised.value)
        del raised
    gc.collect()


@pytest.mark.slow
def test_postgresql_tells_what_is_wrong(postgresql_url: str) -> None:
    user, _, place = postgresql_url.rpartition("@")
    cases = {
        f"{user.replace('s3cr', 'wr0ng')}@{place}": "the server refuses the user",
        f"{user}@{place.replace('/postgres', '/nowhere', 1)}": "does not exist.; create it",
        f"{user}@{place}x": "cannot be reached",
    }
    for url, told in cases.items():
        with pytest.raises(ClusterError, match=told) as raised:
            open_storage(url)
        assert "s3cr" not in str(raised.value)
        assert "wr0ng" not in str(raised.value)


@pytest.mark.slow
def test_a_search_outlasts_a_restart_of_its_server(postgresql: Any) -> None:
    study = make_study(open_storage(postgresql.url))
    study.tell(study.ask(), 0.5)

    def restart() -> None:
        for _ in range(2):
            time.sleep(0.5)
            postgresql.stop()
            time.sleep(1)
            postgresql.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    while restarting.is_alive():
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(0.5, 1)
        study.tell(trial, 0.5)
    restarting.join()
    trials = make_study(open_storage(postgresql.url)).get_trials()
    assert len(trials) > 1
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_a_connection_lost_between_two_ways_to_read_is_lost() -> None:
    """Optuna reads trials another way where the first has failed; the connection is what has gone."""
    gone = OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))

    def read(reason: Exception) -> None:
        try:
            try:
                raise reason
            except Exception:
                raise PendingRollbackError("rolled back first, please")  # noqa: B904 - as SQLAlchemy does
        except SQLAlchemyError as error:
            raise StorageInternalError("An exception is raised during the commit.") from error

    with pytest.raises(StorageInternalError) as lost:
        read(gone)
    assert _lost(lost.value) is gone
    with pytest.raises(StorageInternalError) as other:
        read(ValueError("not the server's fault"))
    assert _lost(other.value) is None


def test_a_file_whose_writer_was_killed_is_taken_up(tmp_path: Path) -> None:
    """The killed one leaves a journal, which the next one that opens the file rolls back."""
    path = tmp_path / "study.db"
    url = f"sqlite:///{path}"
    optuna.create_study(storage=open_storage(url), study_name="kept")
    code = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('pragma cache_size = 1')\n"  # so that the file itself is written to before the end
        "connection.execute('begin immediate')\n"
        "connection.execute('create table half (content text)')\n"
        "for _ in range(200):\n"
        "    connection.execute('insert into half values (?)', ('x' * 2000,))\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == 9
    assert (tmp_path / "study.db-journal").stat().st_size > 0
    assert check_storage(url) == []
    study = optuna.load_study(storage=open_storage(url), study_name="kept")
    study.ask()
    assert len(study.trials) == 1
