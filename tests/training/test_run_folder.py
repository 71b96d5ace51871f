"""Run folders: one writer, one configuration, a manifest without passwords."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.errors import RunError
from cdn_tune.training.runs.run_folder import claim, describe_run, first_difference, git_commit, locked, read_manifest

MANIFEST: dict[str, Any] = {"kind": "train"}
CONFIGURATION: dict[str, dict[str, Any]] = {"experiment.yaml": {"optim": {"lr": 0.1}, "seed": 1}}


def test_claim_then_same_again(tmp_path: Path) -> None:
    with locked(tmp_path / "run") as run:
        assert claim(run, MANIFEST, CONFIGURATION) is False
    with locked(run):
        assert claim(run, MANIFEST, CONFIGURATION) is True
    assert read_manifest(run) == MANIFEST


def test_in_use(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunError, match="in use by another cdn-tune"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_other_experiment_names_the_key(tmp_path: Path) -> None:
    with locked(tmp_path):
        claim(tmp_path, MANIFEST, CONFIGURATION)
        with pytest.raises(RunError, match=r"optim\.lr is 0\.1 there, 0\.2 here"):
            claim(tmp_path, MANIFEST, {"experiment.yaml": {"optim": {"lr": 0.2}, "seed": 1}})
        with pytest.raises(RunError, match="holds a train run, not a search run"):
            claim(tmp_path, {"kind": "search"}, CONFIGURATION)


@pytest.mark.parametrize(
    ("section", "remedy"),
    [
        (
            "early_stopping",
            r"go on with --set early_stopping\.min_resource=VALUE as it is there, or choose another --run",
        ),
        ("overrides", r"3 here\); choose another --run folder"),
    ],
)
def test_a_setting_of_the_space_that_differs_can_be_set(tmp_path: Path, section: str, remedy: str) -> None:
    with locked(tmp_path):
        claim(tmp_path, {"kind": "search"}, {"search_space.yaml": {section: {"min_resource": 1}}})
        with pytest.raises(RunError, match=remedy):
            claim(tmp_path, {"kind": "search"}, {"search_space.yaml": {section: {"min_resource": 3}}})


def facts(root: str, **digests: str) -> dict[str, Any]:
    files = {name: {"size": 1, "sha256": digest} for name, digest in digests.items()}
    big = {"name": "big.hdf5", "size": 2, "sampled_sha256": "0"}
    return {"root": root, "files": {"annotations": files, "features": big, "word_vectors": big}}


@pytest.mark.parametrize("name", ["experiment.yaml", "search_space.yaml"])
def test_a_run_is_of_its_data_wherever_they_lie(tmp_path: Path, name: str) -> None:
    def configuration(root: str, seed: int = 1) -> dict[str, dict[str, Any]]:
        data = {"data": {"root": root, "features": f"{root}/f", "word_vectors": f"{root}/w"}}
        paths = (
            data if name == "experiment.yaml" else {"overrides": {f"data.{key}": "x" + root for key in data["data"]}}
        )
        return {name: {"seed": seed, **paths}}

    with locked(tmp_path):
        claim(tmp_path, {"kind": "train", "data": facts("/a", train="1")}, configuration("/a"))
        same = {"kind": "train", "data": facts("/a/../b", train="1")}
        assert claim(tmp_path, same, configuration("/a/../b")) is True
        with pytest.raises(RunError, match="seed is 1 there, 2 here"):
            claim(tmp_path, same, configuration("/b", seed=2))
        for other in (facts("/b", train="2"), facts("/b", train="1", val="1"), facts("/b")):
            with pytest.raises(RunError, match=r"its data, then in /a, have changed since it began \((train|val)\)"):
                claim(tmp_path, {"kind": "train", "data": other}, configuration("/b"))
        with pytest.raises(RunError, match="holds another run"):  # nothing is known of the data
            claim(tmp_path, {"kind": "train"}, configuration("/b"))


def test_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not empty and not a run folder"), locked(tmp_path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file"), locked(tmp_path / "thesis.tex"):
        pass


def test_manifest_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        read_manifest(tmp_path / "x")
    with pytest.raises(RunError, match="is not a run folder"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(RunError, match="not a cdn-tune manifest"):
        read_manifest(tmp_path)


def test_first_difference() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}}, {}) == "a.b is 1 there, None here"
    assert first_difference({"train": {"cuda_graphs": True}}, {"train": {"cuda_graphs": False}}) is None
    mine, other = ({"model": {"name": name, "hidden": size}} for name, size in (("cdn", 8), ("tan", 4)))
    assert first_difference(mine, other) == "model.name is cdn there, tan here"


def test_a_password_on_the_command_line_is_not_recorded(
    tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["/bin/cdn-tune", "search", "a.yaml", "--storage", "postgresql://me:s3cr:t/w%rd@h/d?sslpassword=s3cret&a=b"]
    monkeypatch.setattr(sys, "argv", [*given, "--address", "h:1", "optim.lr=1", "--storage=mysql://u:s3@h/d"])
    command = describe_run("search", tiny(), {})["command"]
    assert command[:5] == ["cdn-tune", "search", "a.yaml", "--storage", "postgresql://me:***@h/d?sslpassword=***&a=b"]
    assert command[5:] == ["--address", "h:1", "optim.lr=1", "--storage=mysql://u:***@h/d"]


def test_the_commit_of_a_checkout_is_recorded() -> None:
    checkout = (Path(__file__).resolve().parents[2] / ".git").exists()
    assert bool(git_commit()) == checkout
