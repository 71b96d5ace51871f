"""Predictions as files: round trips, other people's formats, and every fault in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import Annotation
from cdn_tune.data.charades import parse_line
from cdn_tune.errors import DataError
from cdn_tune.evaluation.literature import SETTINGS, published_rows
from cdn_tune.evaluation.predictions import export_predictions, read_predictions, score_predictions
from cdn_tune.evaluation.queries import (
    QueryResult,
    answers_of,
    query_results,
    read_query_results,
    write_query_results,
)

ITEMS = [
    Annotation("a:1", "a", 20.0, 2.0, 8.0, "she opens the door"),
    Annotation("a:2", "a", 20.0, 5.0, 9.0, "<script>alert('1')</script>"),
    Annotation("b:1", "b", 31.5, 0.0, 31.5, "köttbullar ## twice"),
]


def results() -> list[QueryResult]:
    nan = float("nan")
    top = torch.tensor(
        [[[2.0, 9.0], [0.0, 4.0]], [[nan, nan], [nan, nan]], [[0.0, 31.5], [nan, nan]]], dtype=torch.float64
    )
    return query_results(ITEMS, top, torch.tensor([[0.75, 0.5], [nan, nan], [0.25, nan]]), "test")


def test_results_come_back_as_written(tmp_path: Path) -> None:
    write_query_results(tmp_path / "p.jsonl", results())
    found = read_query_results(tmp_path / "p.jsonl")
    assert found == results()
    assert [each.iou for each in found] == pytest.approx([6 / 7, 0, 1])
    assert [len(each.moments) for each in found] == [2, 0, 1]
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0]) == {
        "id": "a:1",
        "video": "a",
        "query": "she opens the door",
        "duration": 20.0,
        "truth": [2.0, 8.0],
        "moments": [[2.0, 9.0, 0.75], [0.0, 4.0, 0.5]],
        "iou": found[0].iou,
        "split": "test",
    }
    answers = answers_of([each.moments for each in found], [each.annotation for each in found], 3)
    assert (answers.top.shape, answers.scores.shape) == ((3, 3, 2), (3, 3))
    assert answers.top[0, 2].isnan().all()
    assert answers.scores[0, 0] == 0.75
    assert answers.durations.tolist() == [20.0, 20.0, 31.5]
    assert answers.rank(0.5).tolist() == [1, 0, 1]


GOOD = {"id": "a", "video": "a", "query": "q", "duration": 9, "truth": [1, 2], "moments": [], "iou": 0, "split": "test"}


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", '{"id": "a"}', '{"id": "a", "truth": [1]}', "[" * 100_000),
        json.dumps({**GOOD, "duration": 10**400}),
        json.dumps({**GOOD, "moments": [[0, 1, 1]] * 10_001}),
        json.dumps({**GOOD, "split": "all"}),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    write_query_results(tmp_path / "p.jsonl", results())
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"p\.jsonl:4: not a line of predictions"):
        read_query_results(tmp_path / "p.jsonl")


def test_both_formats_are_read_back(tmp_path: Path) -> None:
    expected = [each.moments for each in results()]
    submission, truth = export_predictions(results(), "qvhighlights", tmp_path)
    assert read_predictions(submission, ITEMS) == (expected, 0)
    first = json.loads(submission.read_text().splitlines()[0])
    assert (first["qid"], first["vid"], first["pred_relevant_windows"][0]) == (0, "a", [2.0, 9.0, 0.75])
    lines = [json.loads(line) for line in truth.read_text().splitlines()]
    assert [line["relevant_windows"] for line in lines] == [[[2.0, 8.0]], [[5.0, 9.0]], [[0.0, 31.5]]]
    assert [line["duration"] for line in lines] == [20.0, 20.0, 31.5]
    (text,) = export_predictions(results(), "charades_sta", tmp_path)
    assert text.read_text().splitlines()[0] == "a 2 9##she opens the door"
    assert parse_line(text.read_text().splitlines()[2], "x") == ("b", 0.0, 31.5, "köttbullar ## twice")
    read, _ = read_predictions(text, ITEMS)
    assert [moments[0][:2] for moments in read] == [(2.0, 9.0), (0.0, 0.0), (0.0, 31.5)]


def test_case_and_punctuation_of_a_query_do_not_matter(tmp_path: Path) -> None:
    said = [{"id": item.id, "query": item.query.upper() + ".", "moments": []} for item in ITEMS]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(each) + "\n" for each in said))
    assert read_predictions(tmp_path / "p.jsonl", ITEMS) == ([()] * len(ITEMS), 0)


def line(**changes: Any) -> dict[str, Any]:
    return {"id": "a:1", "moments": [[1.0, 2.0, 0.5]], **changes}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([line()], r"2 of 3 queries of the split are missing, first a:2; add a line for each"),
        ([line(), line()], r":2: query a:1 is there twice"),
        ([line(id="z")], r":1: query 'z' is not in the split; name it by its id, such as 'a:1'"),
        ([line(id=3)], "query 3 is not in the split"),
        ([line(id=True)], "query True is not in the split"),
        ([{"moments": []}], "query None is not in the split"),
        ([line(moments=[[1, float("nan"), 1]])], "moment 1 of a:1 is .* NaN and infinity are no times"),
        ([line(moments=[[1, 2, float("inf")]])], "NaN and infinity"),
        ([line(moments=[[1, 2, 0.5], [3, 20.5, 0.4]])], r"moment 2 of a:1, 3 to 20\.5 s, lies outside video a of 20 s"),
        ([line(moments=[[-1, 2]])], "lies outside video a"),
        ([line(moments=[[5, 2]])], "ends at 2 s, before its start at 5 s"),
        ([line(moments=[[1, 10**400]])], "NaN and infinity"),
        ([line(moments=[[0, 1]] * 10_001)], "a:1 has 10,001 moments; list the best ones, at most 10,000"),
        ([line(id="z" * 10_000)], "query 'z{59} is not in the split"),
        ([line(moments=[["1", 2]])], r"write \[start, end, score\]"),
        ([line(moments=[[1, 2, 3, 4]])], r"write \[start, end, score\]"),
        ([line(moments="x")], "are no list"),
        ([line(moments=[[1, 2, 0.1], [1, 3, 0.2]])], "higher score than the one before it; list moments best first"),
        ([{"id": "a:1"}], "not a line of predictions"),
        ([line(video="b")], r":1: its video is 'b', but query a:1 of the split has 'a'; name the dataset and split"),
        ([{"qid": 0, "vid": "c", "pred_relevant_windows": []}], "its video is 'c'"),
        ([line(query="she closes the door")], "its query is 'she closes the door', but query a:1 of the split has"),
        ([line(query=7)], "its query is 7"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, lines: list[dict[str, Any]], told: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(DataError, match=told) as caught:
        read_predictions(path, ITEMS)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a 1 2##she opens the door\n", "1 lines for 3 queries"),
        ("a 1 2##she opens the door\nb 1 2##x\nb 1 2##y\n", r":2: is of 'b', 'x', but the split has a:2 here"),
        ("a 1 two##she opens the door\n" * 3, "'two' is not a number"),
        ("a 1 99##she opens the door\n" * 3, "lies outside video a"),
    ],
)
def test_faulty_text_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(DataError, match=told):
        read_predictions(tmp_path / "p.txt", ITEMS)


def test_lines_of_absent_sentences_are_not_scored(tmp_path: Path) -> None:
    queries = [
        {
            "vid": f"v{at}",
            "duration": 20,
            "query": f"sentence {at}",
            "relevant_windows": [[at, at + 5]] if at % 3 else [],
        }
        for at in range(9)
    ]  # every third one is absent
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in queries))
    answers = [{"id": f"test.jsonl:{at + 1}", "moments": [[at, at + 5, 0.5]]} for at in range(9)]
    path, text = tmp_path / "p.jsonl", tmp_path / "p.txt"

    def score(file: Path) -> tuple[int, dict[str, float], dict[str, Any]]:
        found = score_predictions(file, tmp_path, ious=(0.5,), resamples=20)
        return found["queries"], found["metrics"], found["predictions"]

    def write(lines: list[dict[str, Any]]) -> None:
        path.write_text("".join(json.dumps(each) + "\n" for each in lines))

    write(answers)
    count, metrics, told = score(path)
    assert (count, metrics["mIoU"], told["moments"], told["absent"]) == (6, 1, 6, 3)
    text.write_text("".join(f"v{at} {at} {at + 5}##sentence {at}\n" for at in range(9)))
    assert score(text)[1] == metrics
    assert score(text)[2]["absent"] == 3
    write([each for at, each in enumerate(answers) if at % 3])
    assert score(path)[:2] == (count, metrics)
    assert score(path)[2]["absent"] == 0
    write([*answers, {"qid": 6, "moments": []}])
    with pytest.raises(
        DataError, match=r"query 6 is not in the .* its position, absent sentences not counted, from 0 to 5"
    ):
        score(path)
    write([*answers, answers[3]])
    with pytest.raises(DataError, match=r"query test\.jsonl:4 is there twice"):
        score(path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("p.jsonl", "none.jsonl"):
        with pytest.raises(DataError, match="cannot be read"):
            read_predictions(tmp_path / name, ITEMS)


def test_scored_alone_a_run_has_the_same_metrics(trained: Path, planted: Path, tiny: Callable[..., Any]) -> None:
    from cdn_tune.evaluation.evaluate import evaluate_run
    from cdn_tune.evaluation.request import Request

    request = Request(formats=("qvhighlights", "charades_sta"), resamples=50)
    own = evaluate_run(trained, None, request)
    for name in ("predictions.jsonl", "predictions-qvhighlights.jsonl"):
        found = score_predictions(
            trained / name, planted, ious=own["ious"], val_fraction=tiny().data.val_fraction, resamples=50
        )
        assert found["dataset"] == "charades_sta"
        assert found["metrics"] == pytest.approx(own["metrics"], abs=1e-9)
        assert found["intervals"] == own["intervals"]
        assert found["baselines"] == own["baselines"]
    first = score_predictions(trained / "predictions-charades_sta.txt", planted, ious=own["ious"], resamples=50)
    for name in ("R1@0.3", "R1@0.5"):
        assert first["metrics"][name] == pytest.approx(own["metrics"][name])


def test_every_query_of_the_file_counts(trained: Path, planted: Path, tmp_path: Path) -> None:
    """One whose moment is empty is a miss; predictions for the whole file are scored, and positions are the file's."""
    from cdn_tune.evaluation.evaluate import evaluate_run
    from cdn_tune.evaluation.request import Request

    data, file = tmp_path / "data", "charades_sta_test.txt"
    shutil.copytree(planted, data)
    lines = (data / file).read_text().splitlines()
    before = evaluate_run(trained, None, Request(resamples=20))
    video, _, rest = lines[1].split(" ", 2)
    lines[1] = f"{video} 5.0 5.0##{rest.partition('##')[2]}"
    (data / file).write_text("\n".join(lines) + "\n")
    request = Request(other_data=True, formats=("qvhighlights", "charades_sta"), resamples=20)
    own = evaluate_run(trained, {"data.root": str(data)}, request)
    assert (before["without_moment"], own["queries"]) == ([], len(lines))
    assert [query["id"] for query in own["without_moment"]] == [f"{file}:2"]
    missed = read_query_results(trained / "predictions.jsonl")[1]
    assert (missed.id, missed.truth, missed.iou, bool(missed.moments)) == (f"{file}:2", (5.0, 5.0), 0.0, True)
    was = read_query_results(trained / "predictions-look-1.jsonl")[1]
    assert before["metrics"]["mIoU"] - own["metrics"]["mIoU"] == pytest.approx(was.iou / len(lines))
    for name in ("predictions.jsonl", "predictions-qvhighlights.jsonl", "predictions-charades_sta.txt"):
        found = score_predictions(trained / name, data, ious=own["ious"], val_fraction=0.3, resamples=20)
        assert found["without_moment"] == own["without_moment"]
        assert found["metrics"]["R1@0.5"] == pytest.approx(own["metrics"]["R1@0.5"])
    entries = [json.loads(each) for each in (trained / "predictions-qvhighlights.jsonl").read_text().splitlines()]
    assert [(entry["qid"], entry["query"]) for entry in entries] == [
        (number, each.partition("##")[2]) for number, each in enumerate(lines)
    ]


def test_what_cannot_be_scored(tmp_path: Path, planted: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        score_predictions(tmp_path / "p", tmp_path / "none")
    with pytest.raises(DataError, match="no annotation files of a known dataset"):
        score_predictions(tmp_path / "p", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        score_predictions(tmp_path / "p", planted)


def facts(planted: bool, queries: int, skipped: int, features: str) -> dict[str, Any]:
    return {
        "planted": planted,
        "splits": {"test": {"queries": queries}},
        "skipped": {"test": [{}] * skipped},
        "files": {"features": {"name": features}},
    }


def test_published_rows_only_beside_the_same_data() -> None:
    data = DataConfig(dataset="charades_sta", root="/x")
    rows = published_rows(data, facts(False, 3719, 1, "vgg_rgb_features.hdf5"))
    assert [row["method"] for row in rows] == ["CDN, pool", "CDN, conv", "2D-TAN, pool", "2D-TAN, conv"]
    assert rows[0]["metrics"] == {"R1@0.5": 0.4524, "R1@0.7": 0.2699, "R5@0.5": 0.8118, "R5@0.7": 0.5747}
    assert all("chosen on the test split" in row["note"] for row in rows)
    assert published_rows(data, facts(True, 3720, 0, "vgg_rgb_features.hdf5")) == []
    assert published_rows(data, facts(False, 3700, 0, "vgg_rgb_features.hdf5")) == []
    assert published_rows(data, facts(False, 3720, 0, "i3d.hdf5")) == []
    small = data.model_copy(update={"feature_size": 1024})
    assert published_rows(small, facts(False, 3720, 0, "vgg_rgb_features.hdf5")) == []
    for setting in SETTINGS:
        for _, _, values in setting.rows:
            assert len(values) == 2 * len(setting.ious)
            one, five = values[: len(setting.ious)], values[len(setting.ious) :]
            assert list(one) == sorted(one, reverse=True)
            assert all(first < fifth for first, fifth in zip(one, five, strict=True))
