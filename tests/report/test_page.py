"""The page as text: what it holds, what it escapes, what it says is missing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.data.mark import DRAWN
from cdn_tune.errors import DataError, RunError
from cdn_tune.report.answers import recorded_predictions
from cdn_tune.report.page import Builder, check_target
from tests.epochs import epoch_line

Tiny = Callable[..., Experiment]
MakeRun = Callable[..., Path]
NOW = 1.78e9


def data_of(html: str) -> dict[str, Any]:
    """What the page's script unpacks."""
    packed = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', html)
    assert packed
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return data


@pytest.fixture(scope="module")
def run(make_run: MakeRun, planted: Path) -> Path:
    from cdn_tune.config import override
    from tests.conftest import TINY

    experiment = override({**TINY, "data": {**TINY["data"], "root": str(planted)}}, {}, "tiny")
    return make_run(experiment, queries=30, evaluated=True, checkpoint=True, objectives=2)


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return Builder(run).build(NOW).html


def test_everything_is_there(html: str) -> None:
    data = data_of(html)
    drawn = ["history", "curves", "gantt", "pareto", "importance", "parallel", "slices", "contour"]
    assert list(data["figures"]) == drawn
    assert [name for name in drawn if f'data-figure="{name}"' in html] == drawn
    assert list(data["figures"]["history"]["views"]) == ["by trial", "by time", "by GPU-hours"]
    assert "planted data" in html
    assert "2D-TAN" not in html  # a published result, and these are planted data
    assert "opened 2 times" in html
    assert len(data["queries"]["id"]) == 30


def test_drawn_videos_are_labelled_so(make_run: MakeRun, tiny: Tiny) -> None:
    page = Builder(make_run(tiny(), queries=3, evaluated=True, planted=DRAWN), views=0).build(NOW).html
    assert "<strong>Drawn videos.</strong> These numbers say" in page
    assert '<span class="badge planted">drawn videos</span>' in page
    assert "planted data" not in page
    assert "2D-TAN" not in page  # a published result


def test_the_page_is_the_same_each_time(run: Path, html: str) -> None:
    assert Builder(run).build(NOW).html == html


def test_history_never_falls_and_ends_at_the_best(html: str) -> None:
    for view in data_of(html)["figures"]["history"]["views"].values():
        best = next(trace for trace in view["data"] if trace["name"] == "best so far")
        assert best["y"] == sorted(best["y"])
        highest = max(max(trace["y"]) for trace in view["data"] if trace["name"] in ("complete", "pruned"))
        assert best["y"][-1] == pytest.approx(highest)
        assert best["x"] == sorted(best["x"])


def test_bars_of_one_place_never_overlap(html: str) -> None:
    bars = [
        (row, begin, begin + width)
        for trace in data_of(html)["figures"]["gantt"]["views"]["trials"]["data"]
        for row, begin, width in zip(trace["y"], trace["base"], trace["x"], strict=True)
    ]
    assert len(bars) == 48  # two stretches of each of 24 trials
    for row in {row for row, _, _ in bars}:
        here = sorted((begin, end) for name, begin, end in bars if name == row)
        assert all(one[1] <= other[0] + 1e-3 for one, other in pairwise(here))


def test_figures_call_trials_by_their_numbers(html: str, run: Path) -> None:
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{run}/study.db")
    complete = [trial.number for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert complete != list(range(len(complete)))  # others lie between them
    figures = data_of(html)["figures"]
    for trace in figures["slices"]["views"]["slices"]["data"]:
        assert sorted(trace["marker"]["color"]) == complete
    hovers = " ".join(str(trace["text"]) for trace in figures["pareto"]["views"]["pareto"]["data"])
    assert sorted(int(number) for number in re.findall(r'"number": (\d+)', hovers)) == complete


def test_what_people_wrote_is_text(html: str) -> None:
    assert "<b>lr</b>" not in html  # a trial's reason
    assert "&lt;b&gt;lr&lt;/b&gt;" in html
    assert "run <i>of" not in html  # the run folder
    assert "alert('x')" not in html  # a query: it travels packed
    assert data_of(html)["queries"]["query"][0].startswith("<script>alert('x')")
    assert html.count("<script") == 3
    assert "hush" not in html


def test_a_hostile_query_among_the_mistakes_is_text(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), trials=3, queries=5)
    path = run / "predictions.jsonl"
    first, *rest = path.read_text(encoding="utf-8").split("\n")
    moments = [[0, 0.001, 0.99]]
    path.write_text("\n".join([json.dumps({**json.loads(first), "moments": moments}), *rest]), encoding="utf-8")
    html = Builder(run, views=0).build(NOW).html
    assert '<a href="#query" data-at="0">&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;' in html
    assert html.count("<script") == 3


def test_a_folder_without_videos_leaves_the_rest(make_run: MakeRun, tiny: Tiny, tmp_path: Path) -> None:
    page = Builder(make_run(tiny(), trials=3, queries=5), views=0, videos=tmp_path).build(NOW)
    assert [notice for notice in page.notices if notice.startswith("videos are not shown: ")] == list(page.notices)
    assert len(data_of(page.html)["queries"]["id"]) == 5
    assert "media-src" not in page.html


def test_scripts_are_those_of_the_policy(html: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    script = html.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"sha256-{digest}" in policy[1].replace("&#43;", "+")
    assert "connect-src &#39;none&#39;" in policy[1]
    assert "media-src" not in policy[1]  # there are no videos
    assert not re.search(r'(?:src|href)="(?:https?:)?//', html)


def test_score_maps_are_the_models(run: Path, html: str, tiny: Tiny) -> None:
    views = data_of(html)["queries"]["views"]
    cells = np.frombuffer(base64.b64decode(views["cells"]), dtype="<u2")
    assert views["clips"] == 8
    assert len(cells) == 36  # all of an 8 x 8 map on or above its diagonal
    assert all(cell // 8 <= cell % 8 for cell in cells)
    for view in views["of"].values():
        scores = np.frombuffer(base64.b64decode(view["scores"]), dtype=np.uint8)
        assert scores.shape == (36,)
        assert scores.max() == 255
        (attention,) = view["strips"]
        assert (attention["title"], attention["names"]) == ("Frame attention", ["step 1", "step 2"])
        assert [len(base64.b64decode(row)) for row in attention["rows"]] == [16, 16]  # frames


def test_the_published_protocol_is_labelled(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), trials=3, evaluated=True)
    published = {"label": "the epoch was chosen on the test split itself", "metrics": {"mIoU": 0.9876}}
    (run / "evaluation-published.json").write_text(json.dumps(published))
    html = Builder(run, views=0).build(NOW).html
    before, _, after = html.partition("With the published protocol")
    assert "98.76" not in before
    assert "98.76" in after
    assert published["label"] in after


def test_without_an_evaluation_val_is_answered(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), checkpoint=True)
    page = Builder(run).build(NOW)
    data = data_of(page.html)
    assert data["queries"]["split"] == "val"
    assert len(data["queries"]["views"]["of"]) > 0
    assert page.html.count("cdn-tune evaluate &#39;") >= 2  # with the folder, quoted
    assert "not been opened yet" in page.html


def test_without_a_checkpoint_the_rest_is_shown(make_run: MakeRun, tiny: Tiny) -> None:
    page = Builder(make_run(tiny())).build(NOW)
    assert data_of(page.html)["queries"] is None
    assert any("has no checkpoint" in notice for notice in page.notices)
    assert 'id="leaderboard"' in page.html


def test_without_data_maps_are_left_out(make_run: MakeRun, tiny: Tiny, tmp_path: Path) -> None:
    run = make_run(tiny(), queries=5, evaluated=True)
    experiment = tiny(**{"data.root": str(tmp_path / "moved")})
    from cdn_tune.training.runs.checkpoint import build_model, save_checkpoint

    content = {"model": build_model(experiment).state_dict(), "epoch": 1, "val": {}, "planted": True}
    save_checkpoint(run / "best" / "trial-0003" / "checkpoint.pt", experiment, content)
    page = Builder(run).build(NOW)
    assert len(data_of(page.html)["queries"]["id"]) == 5
    assert data_of(page.html)["queries"]["views"] is None
    assert any("score maps and attention are not shown" in notice for notice in page.notices)


def test_a_search_that_has_just_begun(make_run: MakeRun, tiny: Tiny) -> None:
    html = Builder(make_run(tiny(), trials=0), views=0).build(NOW).html
    assert "No trial has been started yet" in html
    assert data_of(html)["figures"] == {}


def test_a_train_run(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    manifest = {"kind": "train", "data": {"planted": True}, "experiment": experiment.plain()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "experiment.yaml").write_text(dump(experiment.plain()))
    lines = [epoch_line(epoch, 0.1 * epoch) for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = Builder(tmp_path, views=0).build(NOW).html
    assert "The best epoch is 3" in html
    assert list(data_of(html)["figures"]["curves"]["views"]) == ["val metrics", "training loss", "learning rate"]
    assert 'id="leaderboard"' not in html


GOOD: dict[str, Any] = {
    "id": "a",
    "video": "v",
    "query": "q",
    "duration": 9.0,
    "truth": [1, 2],
    "moments": [[1, 2, 0.5]],
    "iou": 1.0,
    "split": "test",
}


@pytest.mark.parametrize(
    "wrong",
    [{"split": "everything"}, {"truth": [1]}, {"duration": None}, {"moments": [[0, 1e999, 0.5]]}, {"moments": 3}],
    ids=["split", "truth", "duration", "infinite", "moments"],
)
def test_a_damaged_prediction_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **wrong}) + "\n")
    with pytest.raises(DataError, match=r"predictions.jsonl:2: not a line of predictions"):
        recorded_predictions(path)


def test_damaged_predictions_are_told_and_val_is_answered(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), queries=3, checkpoint=True)
    with (run / "predictions.jsonl").open("a") as file:
        file.write('{"id": 1}\n')
    page = Builder(run).build(NOW)
    assert any("predictions.jsonl:4: not a line of predictions" in notice for notice in page.notices)
    assert data_of(page.html)["queries"]["split"] == "val"


def test_predictions_are_read_as_written(run: Path) -> None:
    found = recorded_predictions(run / "predictions.jsonl")
    assert found.split == "test"
    assert len(found.queries) == 30
    assert found.queries[0].moments[0][:2] == pytest.approx(found.queries[0].truth)
    assert all(len(query.moments) == 5 for query in found.queries)


def test_nothing_but_a_report_is_replaced(tmp_path: Path, html: str) -> None:
    mine = tmp_path / "thesis.html"
    mine.write_text("<html>my thesis</html>")
    with pytest.raises(RunError, match="no report of cdn-tune"):
        check_target(mine)
    with pytest.raises(RunError, match="is a folder"):
        check_target(tmp_path)
    mine.write_text(html)
    check_target(mine)
    check_target(tmp_path / "new.html")
