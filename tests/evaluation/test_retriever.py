"""The retriever: the evaluation's answers for any video and query, encoded once; long videos; bad input in one line."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import cdn_tune
from cdn_tune import Moment, Retriever, load
from cdn_tune.config import Experiment, Nms
from cdn_tune.data.dataset import MomentDataset, load_split
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import CheckpointError, ConfigError, DataError, NotFinite, RunError, TrainingError
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.export import export_run
from cdn_tune.evaluation.queries import read_query_results
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.scoring import NmsChoice
from cdn_tune.model.family import Spans
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.checkpoint import BEST, build_model, load_checkpoint, save_checkpoint
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]
SENTENCE = "a person opens the door"


def make_run(folder: Path, experiment: Experiment) -> Path:
    """A finished train run."""
    facts = fingerprint(experiment.data)
    with locked(folder):
        claim(folder, describe_run("train", experiment, facts), {"experiment.yaml": experiment.plain()})
        train_in(experiment, folder, ignore)
    return folder


def untrained(tiny: Tiny, path: Path, **changes: Any) -> Path:
    """A checkpoint file of an untrained model: what the weights are does not matter."""
    experiment = tiny(**changes)
    state = build_model(experiment).state_dict()
    save_checkpoint(path, experiment, {"model": state, "epoch": 1, "val": {}, "planted": True})
    return path


@pytest.fixture
def retriever(tiny: Tiny, tmp_path: Path) -> Retriever:
    return load(untrained(tiny, tmp_path / "model.pt"))


def frames_of(test: MomentDataset, video: str) -> np.ndarray[Any, Any]:
    return test.features.frames(video)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data.cache_dtype": "float16", "data.resampling": "legacy", "data.tokenizer": "legacy"},
        {"model.proposals": "conv", "model.query.bidirectional": True, "data.unknown_words": "subword"},
    ],
    ids=["as usual", "legacy", "conv"],
)
def test_answers_are_those_of_the_evaluation(tiny: Tiny, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = make_run(tmp_path / "run", tiny(**{"train.epochs": 1, **changes}))
    checkpoint = load_checkpoint(path / BEST)
    test = load_split(checkpoint.experiment.data, "test")
    wanted = evaluate_split(checkpoint.model, test, checkpoint.experiment.eval)
    retriever = load(path)
    for video in {item.video for item in test.annotations}:
        at = [index for index, item in enumerate(test.annotations) if item.video == video]
        queries = [test.annotations[index].query for index in at]
        found = retriever.retrieve(frames_of(test, video), test.annotations[at[0]].duration, queries, top=5)
        for index, moments in zip(at, found, strict=True):
            assert [[moment.start, moment.end] for moment in moments] == wanted.top[index].tolist()
            torch.testing.assert_close(torch.tensor([moment.score for moment in moments]), wanted.scores[index])


def test_encoding_once_is_retrieving(retriever: Retriever) -> None:
    features = np.random.default_rng(0).normal(size=(40, 16))
    queries = [SENTENCE, "a person opens the window"]
    video = retriever.encode(features, 20.0)
    assert retriever.answer(video, queries, 3) == retriever.retrieve(features, 20.0, queries, 3)
    assert retriever.retrieve(features, 20.0, []) == []


def test_inputs_of_every_kind_are_the_same(retriever: Retriever, tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    np.save(tmp_path / "video.npy", features)
    with h5py.File(tmp_path / "video.hdf5", "w") as file:
        file["V1"] = features
    wanted = retriever.retrieve(features, 20.0, [SENTENCE])
    for same in (
        torch.from_numpy(features),
        features.tolist(),
        features.astype(np.float64),
        tmp_path / "video.npy",
        str(tmp_path / "video.hdf5"),
    ):
        assert retriever.retrieve(same, 20.0, [SENTENCE]) == wanted


def test_moments_are_ranked_within_the_video_and_apart(retriever: Retriever) -> None:
    features = np.random.default_rng(1).normal(size=(100, 16))
    (moments,) = retriever.retrieve(features, 33.3, [SENTENCE], top=4)
    assert len(moments) == 4
    assert all(0 <= moment.start < moment.end <= 33.3 + 1e-4 and 0 <= moment.score <= 1 for moment in moments)
    assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)
    with pytest.raises(AttributeError):
        moments[0].start = 1.0  # type: ignore[misc]


def test_a_query_is_answered_alike_in_any_company(tiny: Tiny, tmp_path: Path) -> None:
    """Also with the published encoder, whose answer depends on the padding of its batch."""
    changes = {"model.query.bidirectional": True, "model.query.read_padding": True}
    retriever = load(untrained(tiny, tmp_path / "c.pt", **changes))
    video = retriever.encode(np.random.default_rng(0).normal(size=(30, 16)), 10.0)
    alone = retriever.answer(video, [SENTENCE])
    assert retriever.answer(video, ["a person closes the door and then opens the window", SENTENCE])[1:] == alone


def test_windows_find_what_lies_in_them(retriever: Retriever) -> None:
    """A video of three equal parts: the windows' answers are those of one part, moved."""
    part = np.random.default_rng(2).normal(size=(40, 16))
    (whole,) = retriever.retrieve(part, 20.0, [SENTENCE], top=1)
    (found,) = retriever.retrieve(np.concatenate([part] * 3), 60.0, [SENTENCE], top=3, window=20.0, stride=20.0)
    assert sorted(round(moment.start - whole[0].start, 3) for moment in found) == [0, 20, 40]
    assert all(moment.score == pytest.approx(whole[0].score, abs=1e-6) for moment in found)


def test_windows_are_suppressed_together(retriever: Retriever) -> None:
    features = np.random.default_rng(3).normal(size=(90, 16))
    (moments,) = retriever.retrieve(features, 45.0, [SENTENCE], top=20, window=15.0)
    for index, one in enumerate(moments):
        for other in moments[index + 1 :]:
            overlap = max(0.0, min(one.end, other.end) - max(one.start, other.start))
            union = one.end - one.start + other.end - other.start - overlap
            assert overlap / union <= retriever.nms_threshold + 1e-9


def test_a_span_that_is_not_finite_is_told_as_a_score_is(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """By predict as by an evaluation, though its score is; what is no candidate may have any span."""
    model, spans = retriever.model, type(retriever.model).spans
    test = load_split(retriever.experiment.data, "test")

    def answers() -> Any:
        retriever.retrieve(np.ones((40, 16)), 20.0, [SENTENCE])
        return evaluate_split(model, test, retriever.experiment.eval)

    def broken(output: Any, durations: torch.Tensor, score: float) -> Spans:
        found = spans(model, output, durations)
        found.spans[:, 3, 1] = torch.nan
        found.scores[:, 3] = score
        return found

    monkeypatch.setattr(model, "spans", lambda *given: broken(*given, score=-torch.inf))
    assert answers().top.isfinite().all()
    monkeypatch.setattr(model, "spans", lambda *given: broken(*given, score=0.5))
    with pytest.raises(TrainingError, match="scores or spans are not finite"):
        retriever.retrieve(np.ones((40, 16)), 20.0, [SENTENCE])
    with pytest.raises(NotFinite, match="scores or spans are not finite"):
        evaluate_split(model, test, retriever.experiment.eval)


def test_one_window_is_no_window(retriever: Retriever) -> None:
    features = np.random.default_rng(4).normal(size=(40, 16))
    wanted = retriever.retrieve(features, 20.0, [SENTENCE])
    assert retriever.retrieve(features, 20.0, [SENTENCE], window=30.0) == wanted


def test_threshold_of_suppression(tiny: Tiny, tmp_path: Path) -> None:
    run = untrained(tiny, tmp_path / "c.pt")
    features = np.random.default_rng(5).normal(size=(40, 16))
    (apart,) = load(run, nms_threshold=0.0).retrieve(features, 20.0, [SENTENCE], top=30)
    assert all(one.end <= other.start or other.end <= one.start for one in apart for other in apart if one != other)
    with pytest.raises(DataError, match="nms_threshold=2"):
        load(run, nms_threshold=2)


def test_unknown_words_are_told_and_count_as_in_training(
    retriever: Retriever, caplog: pytest.LogCaptureFixture
) -> None:
    features = np.random.default_rng(0).normal(size=(40, 16))
    with caplog.at_level(logging.WARNING):
        found = retriever.retrieve(features, 20.0, ["a person opens the zyxwv"])
    assert "no vector for zyxwv" in caplog.text
    assert found != retriever.retrieve(features, 20.0, ["a person opens the"])  # a word of zeros is still a word
    assert retriever.unknown_words("zyxwv opens zyxwv qwrt") == ("zyxwv", "qwrt")
    with pytest.raises(DataError, match="none of its words has a vector"):
        retriever.retrieve(features, 20.0, ["zyxwv"])


BAD: dict[str, tuple[Any, Any, Any, dict[str, Any], str]] = {
    "size": (np.ones((9, 5)), 9.0, [SENTENCE], {}, "features of size 5, but this model was trained on size 16"),
    "one axis": (np.ones(16), 9.0, [SENTENCE], {}, r"float64 \[16\]; expected numbers"),
    "no frames": (np.ones((0, 16)), 9.0, [SENTENCE], {}, r"\[0, 16\]"),
    "ragged": ([[1.0], [1.0, 2.0]], 9.0, [SENTENCE], {}, "unequal lengths"),
    "words": (np.full((9, 16), "x"), 9.0, [SENTENCE], {}, "expected numbers"),
    "NaN": (np.full((9, 16), np.nan), 9.0, [SENTENCE], {}, "value nan in row 0, column 0"),
    "overflow": (np.full((9, 16), 1e300), 9.0, [SENTENCE], {}, "value inf in row 0"),
    "no file": (Path("nowhere.npy"), 9.0, [SENTENCE], {}, "nowhere.npy: no such feature file"),
    "duration 0": (np.ones((9, 16)), 0.0, [SENTENCE], {}, "duration=0.0: must be a positive"),
    "duration NaN": (np.ones((9, 16)), float("nan"), [SENTENCE], {}, "duration=nan"),
    "empty query": (np.ones((9, 16)), 9.0, [SENTENCE, " "], {}, "query ' ': has no words"),
    "a string": (np.ones((9, 16)), 9.0, SENTENCE, {}, "is one string; give a list"),
    "top": (np.ones((9, 16)), 9.0, [SENTENCE], {"top": 0}, "top=0"),
    "top in words": (np.ones((9, 16)), 9.0, [SENTENCE], {"top": "2"}, "top='2': must be a whole number"),
    "no query": (np.ones((9, 16)), 9.0, 5, {}, "5]: give a list of sentences"),
    "number": (np.ones((9, 16)), 9.0, [SENTENCE, 5], {}, "5]: give a list of sentences"),
    "duration in words": (np.ones((9, 16)), "9", [SENTENCE], {}, "duration='9': must be a number of seconds"),
    "window in words": (np.ones((9, 16)), 9.0, [SENTENCE], {"window": "3"}, "window='3': must be a number of seconds"),
    "window": (np.ones((9, 16)), 9.0, [SENTENCE], {"window": -1.0}, "window=-1 s must be positive"),
    "gaps": (np.ones((9, 16)), 9.0, [SENTENCE], {"window": 2.0, "stride": 3.0}, "stride=3 s must be"),
    "stride alone": (np.ones((9, 16)), 9.0, [SENTENCE], {"stride": 3.0}, "without a window"),
}


@pytest.mark.parametrize(("features", "duration", "queries", "more", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    tiny: Tiny, tmp_path: Path, features: Any, duration: Any, queries: Any, more: dict[str, Any], message: str
) -> None:
    retriever = load(untrained(tiny, tmp_path / "c.pt"))
    with pytest.raises(DataError, match=message) as raised:
        retriever.retrieve(features, duration, queries, **more)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("device", ["gpu7", "meta:x", "xpu:99"])
def test_a_device_that_is_not_there_is_one_line(device: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^device={device}: .*; name another, or leave it out$"):
        load(untrained(tiny, tmp_path / "c.pt"), device=device)


def test_every_kind_of_path_loads(tiny: Tiny, tmp_path: Path) -> None:
    run, search = tmp_path / "run", tmp_path / "search"
    for folder, kind in ((run, "train"), (search, "search")):
        with locked(folder):
            claim(folder, {"kind": kind}, {})
    untrained(tiny, run / BEST)
    kept = untrained(tiny, search / "best" / "trial-0003" / "checkpoint.pt")
    for path, source in (
        (run, run / BEST),
        (str(run / BEST), run / BEST),
        (kept, kept),
        (kept.parent, kept),
        (search, kept),
    ):
        assert load(path).source == source
    with pytest.raises(RunError, match="no such run"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is no run folder"):
        load(tmp_path / "empty")
    (tmp_path / "c.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "c.pt")


def test_word_vectors_may_have_moved(tiny: Tiny, planted: Path, tmp_path: Path) -> None:
    path = untrained(tiny, tmp_path / "c.pt", **{"data.root": str(tmp_path / "gone")})
    with pytest.raises(DataError, match=r"word_vectors=FILE"):
        load(path)
    vectors = planted / "glove.planted.12d.txt"
    assert load(path, word_vectors=vectors).unknown_words(SENTENCE) == ()
    (tmp_path / "short.txt").write_text("a 1 2 3\ndoor 4 5 6\n")
    with pytest.raises(DataError, match="word vectors of size 3, but this model was trained on size 12"):
        load(path, word_vectors=tmp_path / "short.txt")


def test_damaged_best_gives_way_and_is_told(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(tmp_path):
        claim(tmp_path, {"kind": "search"}, {})
    for number in (0, 1):
        untrained(tiny, tmp_path / "best" / f"trial-000{number}" / "checkpoint.pt")
    (tmp_path / "best/trial-0000/checkpoint.pt").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path).source.parent.name == "trial-0001"
    assert "trial-0000" in caplog.text


def test_importing_the_package_is_light() -> None:
    script = "import sys, cdn_tune; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cdn_tune.nothing
    assert cdn_tune.Moment is Moment


def test_it_suppresses_as_the_last_evaluation_did(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(trained).nms_threshold == 0.5  # the experiment's
    monkeypatch.setattr("cdn_tune.evaluation.scoring.GRID", (0.2,))
    evaluate_run(trained, None, Request(choose_nms=True, resamples=20))
    facts = json.loads((trained / "evaluation.json").read_text())
    if facts["nms_threshold"] != 0.2:  # the choice is tested elsewhere; here it matters that it is used
        facts["nms"]["threshold"] = 0.2
        (trained / "evaluation.json").write_text(json.dumps(facts))
    exported = export_run(trained, tmp_path / "out").folder
    for path in (trained, trained / BEST, exported):
        assert load(path).nms_threshold == 0.2
    assert load(trained, nms_threshold=0.7).nms_threshold == 0.7
    assert "NMS threshold 0.2, chosen on val" in (exported / "README.md").read_text()
    elsewhere = shutil.copyfile(trained / BEST, tmp_path / "alone.pt")
    assert load(elsewhere).nms_threshold == 0.5
    facts["models"][0]["checkpoint"] = "best/trial-0007/checkpoint.pt"  # another model's choice is not its own
    (trained / "evaluation.json").write_text(json.dumps(facts))
    assert load(trained).nms_threshold == 0.5
    evaluate_run(trained, None, Request(resamples=20))
    assert load(trained).nms_threshold == 0.5


@pytest.mark.parametrize("threshold", [0.2, 0.8])
def test_answers_are_those_of_an_evaluation_that_chose(
    trained: Path, monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    monkeypatch.setattr(
        "cdn_tune.evaluation.evaluate.choose_nms", lambda *_: NmsChoice(Nms(threshold), "val", "R5@0.5", {})
    )
    evaluate_run(trained, None, Request(choose_nms=True, resamples=20))
    results = read_query_results(trained / "predictions.jsonl")
    retriever = load(trained)
    test = load_split(retriever.experiment.data, "test")
    for result in results[:8]:
        (found,) = retriever.retrieve(frames_of(test, result.video), result.duration, [result.query], top=10)
        assert [(moment.start, moment.end) for moment in found] == [moment[:2] for moment in result.moments]
