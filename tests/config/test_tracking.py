"""Where a run is logged: which places are taken, that no record holds them, and that no secret is shown."""

from pathlib import Path

import pytest

from cdn_tune.config import load_experiment, load_space
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.errors import ConfigError
from cdn_tune.training.runs.run_folder import first_difference


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
        ("https://mlflow.example/prefix", "https://mlflow.example/prefix"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("file:mlruns", "file:mlruns"),
    ],
)
def test_places_that_are_taken(given: str, held: str) -> None:
    assert load_experiment("demo/small", {"tracking.mlflow": given}).tracking.mlflow == held


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ftp://host/x", "is no URI of MLflow; write http://HOST:PORT"),
        ("mlruns", "is no URI of MLflow"),
        ("http://user:hidden@host:5000", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("http://hidden@host", "set MLFLOW_TRACKING_USERNAME"),
        ("http://user:hid/den@host", "set MLFLOW_TRACKING_USERNAME"),
        ("http://host:99999", "is no URL"),
        ("http://", "must name a host"),
        ("http://host/?token=hidden", "nothing behind ?"),
        ("http://ho\x1bst", "blanks or control characters"),
        ("sqlite://mlflow.db", "write sqlite:///PATH"),
        ("file:", "write file:PATH"),
    ],
)
def test_what_is_wrong_is_told_without_secrets(given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("?", r"\?")) as raised:
        load_experiment("demo/small", {"tracking.mlflow": given})
    if "@" in given:
        assert "hid" not in str(raised.value)


@pytest.mark.parametrize(
    "written", ["tracking: http://user:hidden@host", "tracking: {mlfow: 'http://user:hidden@host'}"]
)
def test_a_mistyped_section_shows_no_secret(written: str, tmp_path: Path) -> None:
    text = dump(load_experiment("demo/small").plain())
    (tmp_path / "a.yaml").write_text(f"{text}{written}\n")
    with pytest.raises(ConfigError, match="tracking") as raised:
        load_experiment(tmp_path / "a.yaml")
    assert "hidden" not in str(raised.value)


def test_a_space_says_it_too_and_no_record_does(tmp_path: Path) -> None:
    plain = read_mapping(Path("search_spaces/quick.yaml").resolve())
    (tmp_path / "space.yaml").write_text(dump({**plain, "tracking": {"mlflow": "http://one:1", "experiment": "mine"}}))
    (tmp_path / "plain.yaml").write_text(dump(plain))
    space, experiment = load_space(tmp_path / "space.yaml")
    assert (experiment.tracking.mlflow, experiment.tracking.experiment) == ("http://one:1", "mine")
    changed, other = load_space(tmp_path / "space.yaml", {}, {"tracking.mlflow": "http://two:2", "keep": 1})
    assert (other.tracking.mlflow, other.tracking.experiment, changed.keep) == ("http://two:2", "mine", 1)
    untracked, base = load_space(tmp_path / "plain.yaml")
    assert base.tracking.mlflow is None
    assert space.plain() == untracked.plain()
    assert experiment.plain() == other.plain() == base.plain()
    assert "tracking" not in {**space.plain(), **experiment.plain()}
    asked = {"overrides": {"tracking.mlflow": "http://three:3"}}
    assert first_difference({"overrides": {"tracking.mlflow": "http://one:1"}}, asked) is None


def test_it_is_nothing_to_search_over(tmp_path: Path) -> None:
    plain = read_mapping(Path("search_spaces/quick.yaml").resolve())
    plain["parameters"]["tracking.checkpoints"] = {"type": "categorical", "choices": [True, False]}
    (tmp_path / "space.yaml").write_text(dump(plain))
    with pytest.raises(ConfigError, match=r"tracking\.checkpoints"):
        load_space(tmp_path / "space.yaml")


@pytest.mark.parametrize("settings", [{"tracking.mlflow": "http://h:1"}, {"tracking": {"mlflow": "http://h:1"}}])
def test_a_setting_of_the_space_is_the_search_s(settings: dict[str, object]) -> None:
    assert load_space("quick", None, settings)[1].tracking.mlflow == "http://h:1"


@pytest.mark.parametrize(
    "uri", ["postgresql://me:hush@h/d", "https://me:h'ush@h", "https://me:my hush@h", "ftp://hush@h"]
)
def test_what_is_refused_is_shown_without_its_password(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("demo/small", {"tracking.mlflow": uri})
    assert "ush" not in str(caught.value)
