"""A test split in parts, and sentences that are not in the video: from annotations to what `evaluate` reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.cli.show.evaluation import headline, rejection_lines
from cdn_tune.config import Experiment
from cdn_tune.data.annotations import Annotation
from cdn_tune.data.dataset import load_split
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.planted import plant
from cdn_tune.errors import ConfigError, DataError
from cdn_tune.evaluation import rejection
from cdn_tune.evaluation.compare import compare_runs
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.predictions import score_predictions
from cdn_tune.evaluation.queries import PREDICTIONS, read_query_results, video_numbers
from cdn_tune.evaluation.rejection import MARKED, PAIRED, foreign_sentences
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.retriever import load
from cdn_tune.evaluation.scoring import Workers
from cdn_tune.evaluation.summary import summarise
from cdn_tune.moments.bootstrap import draws, interval
from cdn_tune.moments.metrics import Measures
from cdn_tune.report.results import tables
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in

SENTENCES = ("a person opens the door", "person takes a cup", "she closes the window", "he sits down", "a dog runs")
SPLITS = {"train": (0, 14), "val": (14, 20), "test_iid": (20, 26), "test_ood": (26, 34)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted features in the layout of Charades-CD: in `ood`, moments lie at the end of their videos."""
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("cd") / "root"
    for name, videos in SPLITS.items():
        content = {}
        for video in range(*videos):
            starts = [16.0 + query if name == "test_ood" else 2.0 + query for query in range(3)]
            content[f"v{video}"] = {
                "video_duration": 24.0,
                "timestamps": [[start, start + 5] for start in starts],
                "sentences": [SENTENCES[(video + query) % len(SENTENCES)] for query in range(3)],
            }
        (source / f"charades_{name}.json").write_text(json.dumps(content))
    return plant(root, "charades_cd", source, feature_size=16, word_size=12, frame_rate=2.0).root


def train(experiment: Experiment, run: Path) -> Path:
    with locked(run):
        claim(
            run,
            describe_run("train", experiment, fingerprint(experiment.data)),
            {"experiment.yaml": experiment.plain()},
        )
        train_in(experiment, run, ignore)
    return run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def run(data: Path, kept: Path, tiny: Callable[..., Experiment], tmp_path: Path) -> Path:
    if not kept.exists():
        train(tiny(**{"data.dataset": "charades_cd", "data.root": str(data), "train.epochs": 1}), kept)
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


def test_parts_and_their_gap(run: Path, data: Path) -> None:
    result = evaluate_run(run, None, Request(resamples=200))
    iid, ood = result["parts"]
    assert [(part["label"], part["queries"], part["videos"]) for part in (iid, ood)] == [("iid", 18, 6), ("ood", 24, 8)]
    (gap,) = result["gaps"]
    assert (gap["of"], gap["minus"]) == ("iid", "ood")
    for name, whole in result["metrics"].items():
        assert whole == pytest.approx((18 * iid["metrics"][name] + 24 * ood["metrics"][name]) / 42)
        assert gap["difference"][name] == pytest.approx(iid["metrics"][name] - ood["metrics"][name])
        low, high = gap["intervals"][name]
        assert low - 1e-9 <= gap["difference"][name] <= high + 1e-9
    blind = {part["label"]: part["query_blind"]["metrics"]["R1@0.3"] for part in (iid, ood)}
    assert blind == {"iid": 1, "ood": 0}  # train knows where iid's moments lie, and that is all there is to know
    assert {"dR1@0.3", "dR5@0.5"} <= result["metrics"].keys()
    assert not any(name.startswith("allR") for name in result["metrics"])  # no query has several moments
    assert json.loads((run / "evaluation.json").read_text()) == result
    assert "iid" not in headline(result)  # the whole split in one line; its parts are in the table
    assert "\n" not in headline(result)
    page = {table.title: table for table in tables(result)}["by part of the test split"]
    assert [label for label, _ in page.rows] == [
        "iid",
        "iid, query-blind list",
        "ood",
        "ood, query-blind list",
        "iid - ood",
    ]
    theirs = score_predictions(run / PREDICTIONS, data, recalls=(1, 5), ious=(0.3, 0.5), resamples=200)
    assert theirs["gaps"][0]["difference"] == pytest.approx(gap["difference"], abs=1e-6)
    rows = {row["name"]: row for row in compare_runs(run, run, resamples=20)["metrics"]}
    assert rows["dR1@0.3"]["first"]["value"] == pytest.approx(result["metrics"]["dR1@0.3"], abs=1e-6)


def test_intervals_of_parts_that_share_videos_are_those_of_a_loop() -> None:
    labels = ("a", "b", "a - part b")  # the last is named as if it were the gap of the others
    items = [
        Annotation(f"q{at}", f"v{at % 7}", 30.0, 2.0 + at % 5, 9.0, f"sentence {at}", part=labels[at % 3])
        for at in range(60)
    ]
    values = np.random.default_rng(0).random((60, 2)) + np.array([[0.0], [0.3], [0.9]] * 20)
    found = summarise({"m": Measures(("R1@0.5", "mIoU"), values)}, items, items, (0.5,), seed=3, resamples=200)
    videos, numbers = video_numbers(items), np.arange(60)
    means = np.array(
        [
            [
                values[[at for at in numbers[part::3] for _ in range(int(count[videos[at]]))]].mean(axis=0)
                for part in range(3)
            ]
            for _, counts in draws(7, 200, 3)
            for count in counts
        ]
    )  # [R, parts, M]

    def check(intervals: dict[str, list[float]], drawn: np.ndarray) -> None:
        for name, low, high in zip(("R1@0.5", "mIoU"), *interval(drawn), strict=True):
            assert intervals[name] == pytest.approx([low, high])

    assert [part["label"] for part in found["parts"]] == list(labels)
    for number, part in enumerate(found["parts"]):
        assert part["videos"] == 7  # each has queries of every video
        check(part["intervals"], means[:, number])
    assert [(gap["of"], gap["minus"]) for gap in found["gaps"]] == [("a", "b"), ("a", "a - part b")]
    for number, gap in enumerate(found["gaps"], start=1):
        check(gap["intervals"], means[:, 0] - means[:, number])


def test_the_tables_have_the_parts(run: Path) -> None:
    shown = CliRunner().invoke(app, ["evaluate", str(run), "--reject"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    for text in ("iid, 18 queries", "ood, 24 queries", "iid - ood", "discounted recall", "sentences of other videos"):
        assert text in shown.output
    assert "AUROC" in shown.output


def test_a_split_without_parts_has_no_gap(trained: Path) -> None:
    result = evaluate_run(trained, None, Request(resamples=20))
    assert (result["parts"], result["gaps"], result["rejection"]) == ([], [], None)
    assert rejection_lines(result) == []


def test_rejection_of_sentences_of_other_videos(run: Path) -> None:
    result = evaluate_run(run, None, Request(resamples=100, reject=True))
    found = result["rejection"]
    assert (found["absent"], found["present_queries"], found["chosen_by"]) == (PAIRED, 42, "balanced_accuracy")
    assert 0 < found["absent_queries"] <= 42
    assert found["val"]["metrics"]["balanced_accuracy"] >= 0.5
    for name, value in found["metrics"].items():
        low, high = found["intervals"][name]
        assert 0 <= low <= value <= high <= 1
    (table,) = [table for table in tables(result) if table.title == "sentences that are not in the video"]
    assert table.heads == ["auroc", "balanced_accuracy", "rejected", "wrongly_rejected"]
    checkpoint = load(run)
    assert checkpoint.threshold == found["threshold"]
    present = read_query_results(run / PREDICTIONS)
    rejected = [each.moments[0][2] < found["threshold"] for each in present]
    assert found["metrics"]["wrongly_rejected"] == pytest.approx(np.mean(rejected))
    item = present[0]
    features = np.random.default_rng(0).random((48, 16), dtype=np.float32)
    (moments,) = checkpoint.retrieve(features, 24.0, [item.query])
    assert checkpoint.rejects(moments) == (moments[0].score < found["threshold"])
    assert checkpoint.rejects([])
    assert result["metrics"] == evaluate_run(run, None, Request(resamples=100))["metrics"]
    assert load(run).threshold is None  # the last evaluation chose none
    assert not load(run).rejects([])


def test_predict_says_what_is_probably_absent(run: Path, data: Path) -> None:
    features = data / "vgg_rgb_features.hdf5"
    asked = ["predict", str(run), "--features", str(features), "--video", "v20", "--query", SENTENCES[0]]
    assert "probably not in this video" not in CliRunner().invoke(app, asked).output
    result = evaluate_run(run, None, Request(resamples=20, reject=True))
    for threshold, rejected in ((2.0, True), (0.0, False)):  # above all scores, and below
        (run / "evaluation.json").write_text(
            json.dumps({**result, "rejection": {**result["rejection"], "threshold": threshold}})
        )
        shown = CliRunner().invoke(app, asked)
        assert shown.exit_code == 0, shown.output
        assert ("probably not in this video: its best score is below 2" in shown.output) == rejected
        found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
        assert found["queries"][0]["probably_absent"] == rejected
    for damaged in ("high", True, None, 10**400):
        (run / "evaluation.json").write_text(json.dumps({**result, "rejection": {"threshold": damaged}}))
        assert load(run).threshold is None


@pytest.mark.slow
def test_rejection_is_the_same_by_several_workers(run: Path, ray_session: None) -> None:
    alone = evaluate_run(run, None, Request(resamples=20, reject=True))["rejection"]
    assert evaluate_run(run, None, Request(resamples=20, reject=True, workers=Workers(2)))["rejection"] == alone


def test_marked_sentences_are_asked(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for split, videos in (("train", range(8)), ("val", range(8, 12)), ("test", range(12, 18))):
        lines: list[dict[str, Any]] = [
            {"vid": f"v{video}", "duration": 24, "query": sentence, "relevant_windows": [[at, at + 5], [18, 23]]}
            for video in videos
            for at, sentence in zip((2, 9), SENTENCES, strict=False)
        ]
        lines += [
            {"vid": f"v{video}", "duration": 24, "query": f"{SENTENCES[4]} away", "relevant_windows": []}
            for video in videos
        ]
        (source / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    root = plant(tmp_path / "root", "jsonl", source, feature_size=16, word_size=12, frame_rate=2.0).root
    experiment = tiny(**{"data.dataset": "jsonl", "data.root": str(root), "train.epochs": 1})
    test = load_split(experiment.data, "test")
    assert (len(test), len(test.absent), test.skipped) == (12, 6, ())
    result = evaluate_run(train(experiment, tmp_path / "run"), None, Request(resamples=50, reject=True))
    found = result["rejection"]
    assert (result["queries"], result["without_moment"]) == (12, [])  # none of them counts as a miss
    assert (found["absent"], found["present_queries"], found["absent_queries"]) == (MARKED, 12, 6)
    assert found["val"]["absent_queries"] == 4
    assert "allR5@0.5" in result["metrics"]
    assert result["metrics"]["allR5@0.5"] <= result["metrics"]["R5@0.5"]


def test_each_sentence_goes_to_another_video() -> None:
    items = [
        Annotation(f"q{video}:{at}", f"v{video}", 10.0 + video, 1, 2, f"sentence {video} {at}", part="iid")
        for video in range(9)
        for at in range(1 + video % 4)
    ]
    pairs = foreign_sentences(items)
    assert sorted(pair.query for pair in pairs) == sorted(item.query for item in items)
    assert sorted(pair.video for pair in pairs) == sorted(item.video for item in items)
    own = {(item.video, item.query): item.duration for item in items}
    length = {item.video: item.duration for item in items}
    assert all((pair.video, pair.query) not in own and pair.duration == length[pair.video] for pair in pairs)
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert pairs == foreign_sentences(items)
    assert pairs != foreign_sentences(items, seed=1)
    same = [Annotation(f"q{video}", f"v{video}", 10, 1, 2, "the same") for video in range(3)]
    assert foreign_sentences(same) == []  # it is true of the other video
    assert foreign_sentences(items[1:3]) == []  # of one video


def test_what_does_not_go_with_it(run: Path) -> None:
    with pytest.raises(ConfigError, match="--reject does not go with --protocol published"):
        Request(reject=True, protocol="published").check()
    looks = run / "looks.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection, "foreign_sentences", lambda _: [])
        with pytest.raises(
            DataError, match="--reject: val has no video that another one's sentences could be asked of"
        ):
            evaluate_run(run, None, Request(reject=True))
    assert not looks.exists()  # test was not opened
