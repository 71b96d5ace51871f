"""An exported folder loads anywhere, answers as the run does, runs no code, and is whole or absent."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cdn_tune import load
from cdn_tune.config import Experiment
from cdn_tune.data.dataset import load_split
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.mark import DRAWN, Mark
from cdn_tune.errors import CdnTuneError, CheckpointError, ConfigError, DataError, RunError
from cdn_tune.evaluation import export as exported
from cdn_tune.evaluation import graph
from cdn_tune.evaluation.export import GRAPH, ONNX, export_run
from cdn_tune.training.runs.checkpoint import BEST, build_model, save_checkpoint
from cdn_tune.training.runs.run_folder import claim, describe_run, locked

Tiny = Callable[..., Experiment]
SENTENCE = "a person opens the door"


def make_run(folder: Path, experiment: Experiment, planted: Mark = True) -> Path:
    """A train run whose best checkpoint is an untrained model's: what the weights are does not matter."""
    with locked(folder):
        facts = fingerprint(experiment.data)
        claim(folder, describe_run("train", experiment, facts), {"experiment.yaml": experiment.plain()})
    model = build_model(experiment)
    generator = torch.Generator().manual_seed(1)
    for buffer in model.buffers():  # statistics as training would leave them, so that they are seen to be kept
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    val = dict.fromkeys(experiment.eval.metrics, 0.25)
    save_checkpoint(
        folder / BEST, experiment, {"model": model.state_dict(), "epoch": 3, "val": val, "planted": planted}
    )
    return folder


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", tiny())


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return export_run(run, tmp_path / "out").folder


@pytest.mark.parametrize("unknown", ["zero", "subword"])
def test_it_answers_as_the_run_without_the_data(tiny: Tiny, planted: Path, tmp_path: Path, unknown: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    run = make_run(tmp_path / "run", tiny(**{"data.root": str(data), "data.unknown_words": unknown}))
    test = load_split(tiny().data, "test")
    features = test.features.frames(test.annotations[0].video)
    queries = [item.query for item in test.annotations]
    wanted = load(run).retrieve(features, 20.0, queries)
    export_run(run, tmp_path / "out")
    shutil.rmtree(data)
    shutil.rmtree(run)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").retrieve(features, 20.0, queries) == wanted


def test_what_lies_in_it(folder: Path, planted: Path) -> None:
    names = {exported.CARD, exported.CONFIG, *exported.NEEDED}
    assert {path.name for path in folder.iterdir()} == names
    experiment = (folder / exported.EXPERIMENT).read_text()
    assert str(planted.parent) not in experiment + (folder / exported.CONFIG).read_text()
    config = json.loads((folder / exported.CONFIG).read_text())
    assert config["planted"] is True
    assert set(config["files"]) == names - {exported.CONFIG}
    assert load(folder).planted
    assert not list(folder.parent.glob(".*.tmp"))


def test_words_are_those_of_the_queries_or_all(run: Path, planted: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text((planted / "glove.planted.12d.txt").read_text() + f"zyxwv {' '.join(['0.5'] * 12)}\n")
    moved = {"data.word_vectors": str(more)}
    few, many = export_run(run, tmp_path / "few", moved), export_run(run, tmp_path / "many", moved, all_words=True)
    assert many.words == few.words + 1
    assert load(tmp_path / "few").unknown_words("opens zyxwv") == ("zyxwv",)
    assert load(tmp_path / "many").unknown_words("opens zyxwv") == ()


def test_all_words_need_no_annotations(run: Path, planted: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    vectors = planted / "glove.planted.12d.txt"
    moved = {"data.root": str(tmp_path / "bare"), "data.word_vectors": str(vectors)}
    with pytest.raises(DataError, match="--all-words"):
        export_run(run, tmp_path / "out", moved)
    export_run(run, tmp_path / "out", moved, all_words=True)
    assert load(tmp_path / "out").reader.rows == load(run).reader.rows
    with pytest.raises(ConfigError, match=r"model\.hidden=3"):
        export_run(run, tmp_path / "other", {"model.hidden": 3})


def test_the_card_tells_what_was_measured(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "before")
    card = (tmp_path / "before" / exported.CARD).read_text()
    assert "Planted data" in card
    assert "| val (chosen on) | 25.00 |" in card
    assert "No test metrics: the test split has not been evaluated" in card
    result: dict[str, Any] = {
        "checkpoint": str(BEST),
        "queries": 41,
        "looks": 2,
        "metrics": {"R1@0.5": 0.5, "mIoU": {"mean": 0.125, "interval": [0.1, 0.2]}, "note": "x"},
        "baselines": {"best_constant": {"metrics": {"R1@0.5": 0.0625}}, "odd": 3},
        "something new": [1],
    }
    (run / "evaluation.json").write_text(json.dumps(result))
    export_run(run, tmp_path / "after")
    card = (tmp_path / "after" / exported.CARD).read_text()
    row = next(line for line in card.splitlines() if line.startswith("| test |"))
    assert "50.00" in row
    assert "12.50" in row
    assert "6.25" in card
    assert "opened 2 times" in card
    assert json.loads((tmp_path / "after" / exported.CONFIG).read_text())["test"]["metrics"]["mIoU"] == 0.125


def test_the_card_has_parts_and_rejection(run: Path, tmp_path: Path) -> None:
    parts = [{"label": "iid", "metrics": {"mIoU": 0.75}}, {"label": "ood", "metrics": {"mIoU": 0.375}}, {"label": 3}, 4]
    result = {"checkpoint": str(BEST), "metrics": {"mIoU": 0.5}, "parts": parts}
    result |= {"rejection": {"metrics": {"auroc": 0.8125}}}
    cases: tuple[tuple[str, dict[str, Any], bool], ...] = (("one", {}, True), ("seeds", {"seeds": {"runs": []}}, False))
    for name, more, has_parts in cases:
        (run / "evaluation.json").write_text(json.dumps(result | more))
        export_run(run, tmp_path / name)
        card = (tmp_path / name / exported.CARD).read_text()
        rows = [line for line in card.splitlines() if line.startswith("| test, part ")]
        assert len(rows) == (2 if has_parts else 0)
        if has_parts:
            assert rows[0].startswith("| test, part iid |")
            assert "75.00" in rows[0]
            assert rows[1].startswith("| test, part ood |")
            assert "37.50" in rows[1]
        assert "with an AUROC of 81.2 %" in card
    (run / "evaluation.json").write_text(json.dumps({"checkpoint": str(BEST), "metrics": {"mIoU": 0.5}}))
    export_run(run, tmp_path / "none")
    assert "nowhere in the video.\n" in (tmp_path / "none" / exported.CARD).read_text()


def test_texts_of_an_evaluation_are_no_markup(run: Path, tmp_path: Path) -> None:
    evil = "<b>|*x*" + "y" * 1000
    metrics = {"metrics": {"mIoU": 0.5}}
    result = {"checkpoint": str(BEST), "queries": evil, **metrics, "baselines": {evil: metrics}}
    for name, content in (("one", result), ("two", {**metrics, "checkpoint": evil})):
        (run / "evaluation.json").write_text(json.dumps(content))
        export_run(run, tmp_path / name)
        card = (tmp_path / name / exported.CARD).read_text()
        assert r"\<b\>\|\*x\*yyy" in card
        assert "<b>|" not in card
        assert "y" * 200 not in card


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"[]", "holds no metrics"),
        (b'{"metrics": {"mIoU": 0.9}}', "does not say which checkpoint"),
        (b'{"metrics": {"mIoU": 0.9}, "checkpoint": "best/trial-0007/checkpoint.pt"}', "another checkpoint"),
    ],
)
def test_other_test_metrics_are_not_its_own(run: Path, tmp_path: Path, content: bytes, reason: str) -> None:
    (run / "evaluation.json").write_bytes(content)
    export_run(run, tmp_path / "out")
    card = (tmp_path / "out" / exported.CARD).read_text()
    assert reason in card
    assert "90.00" not in card


def test_real_data_are_not_labelled_planted(tiny: Tiny, tmp_path: Path) -> None:
    export_run(make_run(tmp_path / "run", tiny(), planted=False), tmp_path / "out")
    assert "lanted" not in (tmp_path / "out" / exported.CARD).read_text()
    assert not load(tmp_path / "out").planted


def test_drawn_videos_are_labelled_so(tiny: Tiny, tmp_path: Path) -> None:
    export_run(make_run(tmp_path / "run", tiny(), planted=DRAWN), tmp_path / "out")
    card = (tmp_path / "out" / exported.CARD).read_text()
    assert "**Drawn videos.** This model was trained on features of drawn videos." in card
    assert "lanted" not in card
    assert load(tmp_path / "out").planted == DRAWN


@pytest.mark.parametrize("name", exported.NEEDED)
def test_damaged_and_incomplete_folders_are_told(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: damaged") as raised:
        load(folder)
    assert "\n" not in str(raised.value)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: is missing"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "is not of a folder that cdn-tune exported"),
        ('{"format": "cdn-tune export", "version": 9}', "export version 9"),
        ('{"format": "cdn-tune export", "version": 1}', "files, val, epoch, planted missing"),
        ("[" * 100_000, "damaged"),
        (None, "is missing, the exported folder is incomplete"),
    ],
)
def test_damaged_config_is_told(folder: Path, content: str | None, message: str) -> None:
    path = folder / exported.CONFIG
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def reseal(folder: Path, name: str) -> None:
    """Makes the digest fit a file that somebody changed."""
    config = json.loads((folder / exported.CONFIG).read_text())
    config["files"][name] = exported.sha256(folder / name)
    (folder / exported.CONFIG).write_text(json.dumps(config))


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", [exported.WEIGHTS, exported.WORD_VECTORS, exported.WORDS])
def test_opening_runs_no_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(pickle.dumps({"vectors": Bomb()}))
    reseal(folder, name)
    with pytest.raises(CheckpointError):
        load(folder)
    assert not (tmp_path / "exploded").exists()


def test_yaml_runs_no_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / exported.EXPERIMENT).write_text("name: !!python/object/apply:os.mkdir [exploded]\n")
    reseal(folder, exported.EXPERIMENT)
    with pytest.raises(CheckpointError, match="not valid YAML"):
        load(folder)
    assert not (tmp_path / "exploded").exists()


def test_files_that_do_not_fit_each_other_are_told(folder: Path) -> None:
    save_file({"vectors": torch.zeros(2, 12)}, folder / exported.WORD_VECTORS)
    reseal(folder, exported.WORD_VECTORS)
    with pytest.raises(CheckpointError, match=r"does not fit words\.json"):
        load(folder)
    save_file({"weight": torch.zeros(1)}, folder / exported.WEIGHTS)
    reseal(folder, exported.WEIGHTS)
    with pytest.raises(CheckpointError, match="its weights do not fit its experiment"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("files", []), ("val", {"mIoU": "x"}), ("val", {"mIoU": None}), ("epoch", "3"), ("epoch", True), ("planted", 1)],
)
def test_facts_of_another_type_are_told(folder: Path, name: str, value: Any) -> None:
    config = json.loads((folder / exported.CONFIG).read_text())
    (folder / exported.CONFIG).write_text(json.dumps({**config, name: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: damaged \({name} missing or of another type\)"):
        load(folder)


@pytest.mark.parametrize("words", ['{"a": 1}', "[1, 2]", '[["a"]]', "[" * 100_000])
def test_words_that_are_none_are_told(folder: Path, words: str) -> None:
    (folder / exported.WORDS).write_text(words)
    reseal(folder, exported.WORDS)
    with pytest.raises(CheckpointError, match=r"is no list of words|cannot be read"):
        load(folder)


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exported, "save_file", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunError, match=r"out: cannot be written \(.*\); free space, or choose another place") as raised:
        export_run(run, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_overwritten_and_nothing_left(run: Path, folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunError, match="exists and is not empty"):
        export_run(run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(RunError, match="exported folder already"):
        export_run(folder, tmp_path / "again")
    (tmp_path / "empty").mkdir()
    export_run(run, tmp_path / "empty")
    load(tmp_path / "empty")


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RunError("no graph")

    monkeypatch.setattr(graph, "trace", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunError, match="no graph"):
        export_run(run, tmp_path / "out", torch_export=True)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.filterwarnings("ignore")  # torch's own, of its file format
def test_the_graph_computes_what_the_model_does(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"model.query.bidirectional": True, "model.proposals": "conv", "model.query.layers": 2}
    run = make_run(tmp_path / "run", tiny(**changes))
    export_run(run, tmp_path / "out", torch_export=True)
    loaded = load(tmp_path / "out")
    scores = loaded.model.graph().module  # type: ignore[union-attr]
    program = torch.export.load(tmp_path / "out" / GRAPH).module()
    features, words, mask = graph.example(loaded.experiment.data, 5, seed=7)
    with torch.no_grad():
        wanted = scores(features, words[:, :5], mask[:, :5])
        torch.testing.assert_close(program(features, words, mask), wanted, rtol=0, atol=1e-5)
    assert "## Graphs" in (tmp_path / "out" / exported.CARD).read_text()


def test_a_graph_that_computes_something_else_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(run)
    monkeypatch.setattr(graph, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="scores differ from the model's by"):
        graph.trace(loaded.model, loaded.experiment.data)


def test_a_model_that_reads_padding_has_no_graph(tiny: Tiny, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny(**{"model.query.bidirectional": True, "model.query.read_padding": True}))
    with pytest.raises(ConfigError, match="read_padding=true"):
        export_run(run, tmp_path / "out", torch_export=True)
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"--onnx needs onnx.*pip install"):
        export_run(run, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
def test_onnx_computes_what_the_model_does(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export_run(run, tmp_path / "out", onnx=True)

    session = onnxruntime.InferenceSession(tmp_path / "out" / ONNX, providers=["CPUExecutionProvider"])
    loaded = load(tmp_path / "out")
    inputs = graph.example(loaded.experiment.data, 5, seed=7)
    (found,) = session.run(None, {name: value.numpy() for name, value in zip(graph.INPUTS, inputs, strict=True)})
    with torch.no_grad():
        np.testing.assert_allclose(found, loaded.model.graph().module(*inputs).numpy(), atol=1e-5)


def test_errors_are_for_users(tmp_path: Path) -> None:
    with pytest.raises(CdnTuneError, match="no such run"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
