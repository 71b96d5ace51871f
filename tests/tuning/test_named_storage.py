"""Where a study lies: a database server that a run folder alone names is never connected to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna.trial import FrozenTrial
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.errors import RunError
from cdn_tune.report.record import read_record as read_for_report
from cdn_tune.tuning.rebuild import rebuild
from cdn_tune.tuning.results.record import front_trials, read_record
from cdn_tune.tuning.results.status import status_of
from cdn_tune.tuning.storage.named import STORAGE, is_same_storage, storage_of
from tests.tuning.test_search_rules import make_space, run_search

Entry = Callable[..., FrozenTrial]
MakeSearch = Callable[..., Path]
SERVERS = [
    "postgresql://me:***@db.example/studies",
    "postgresql://me@db.example/studies",
    "postgresql+psycopg2:///studies?host=db.example",
    "mysql://db.example/studies",
    "sqlite+pysqlcipher:////tmp/x",
    "oracle://db.example",
    "no url at all",
]


def name_storage(run: Path, url: Any) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "storage": url}))


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails whatever would connect to a server."""
    real = sqlalchemy.create_engine

    def create_engine(url: Any, **settings: Any) -> Any:
        assert str(url).startswith("sqlite:"), f"{url} is connected to"
        return real(url, **settings)

    monkeypatch.setattr(sqlalchemy.engine, "create_engine", create_engine)
    monkeypatch.setattr(sqlalchemy, "create_engine", create_engine)


@pytest.mark.parametrize("url", SERVERS)
def test_a_strangers_server_is_not_connected_to(url: str, make_search: MakeSearch, entry: Entry) -> None:
    run = make_search([entry("complete", [0.5])])
    name_storage(run, url)
    for read in (read_record, status_of, read_for_report, front_trials, rebuild):
        with pytest.raises(RunError, match=rf"only the run folder names, .*set {STORAGE} to that URL"):
            read(run)
    for command in (["leaderboard", run], ["search", "status", run], ["report", run], ["evaluate", run, "--front"]):
        result = CliRunner().invoke(app, [str(argument) for argument in command])
        assert result.exit_code == 2, result.output
        assert "error: " in result.output


def test_a_search_asks_for_the_server_too(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_search(tiny, run, make_space(), trials=1)
    name_storage(run, SERVERS[0])
    with pytest.raises(RunError, match="only the run folder names"):
        run_search(tiny, run, make_space(), trials=2, resume=True)
    with pytest.raises(RunError, match="only the run folder names"):
        run_search(tiny, tmp_path / "other", make_space(), trials=1, warm_start=(run,))


def test_a_storage_of_another_kind_is_one_line(make_search: MakeSearch) -> None:
    run = make_search([])
    name_storage(run, ["postgresql://x"])
    with pytest.raises(RunError, match="storage: Input should be a valid string"):
        read_record(run)


def test_the_variable_names_the_very_server_or_nothing(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_search([])
    own = storage_of(run)
    secret = "postgresql://me:s3cret@db.example/studies"  # noqa: S105
    monkeypatch.setenv(STORAGE, secret)
    assert storage_of(run) == own  # a run with a study of its own
    assert storage_of(run, "journal:////a/file") == "journal:////a/file"
    for given in SERVERS[:2]:
        assert storage_of(run, given) == secret  # no password in `ps`
        name_storage(run, given)
        assert storage_of(run) == secret
    for other in ("postgresql://me@db.evil/studies", "postgresql://me@db.example:5433/studies"):
        name_storage(run, other)
        with pytest.raises(RunError, match="only the run folder names"):
            storage_of(run)
        assert storage_of(run, other) == other
    hidden = "mysql://me:***@db.example/studies?charset=utf8"
    assert storage_of(run, hidden) == "mysql+pymysql://me@db.example/studies?charset=utf8"  # as it is shown


def test_storages_are_compared_without_their_passwords() -> None:
    one = "postgresql://me:s%40crt@host/db?sslmode=require&password=x"
    assert is_same_storage(one, "postgresql+psycopg2://me:***@host/db?password=***&sslmode=require")
    assert not is_same_storage(one, "postgresql://you:s%40crt@host/db?sslmode=require")
    assert not is_same_storage(one, "postgresql://me:s%40crt@host/db?sslmode=require&host=elsewhere")
    assert is_same_storage("", "")
    assert not is_same_storage("", "journal:////a/file")


def test_the_help_tells_how_to_keep_a_password_out_of_ps() -> None:
    assert "CDN_TUNE_STORAGE" in CliRunner().invoke(app, ["search", "--help"], env={"COLUMNS": "200"}).output
