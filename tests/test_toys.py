"""A sampler, a stopping rule, a metric, a layout, a schedule and a column from one file, used as our own are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from cdn_tune.cli.show.tables import leaderboard_table
from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.load import build
from cdn_tune.config.reference import reference
from cdn_tune.config.schema import experiment_schema, space_schema
from cdn_tune.config.tables import LAYOUTS, METRICS, SAMPLERS, SCHEDULES, STOPPING_RULES, find_metric, resolve
from cdn_tune.data.annotations import Split
from cdn_tune.data.doctor import examine
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.layouts import layout_of
from cdn_tune.data.planted import plant
from cdn_tune.errors import ConfigError
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.request import Request
from cdn_tune.report.page import Builder
from cdn_tune.report.results import tables as evaluation_tables
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.results.leaderboard import csv_text, json_text, write_leaderboard
from cdn_tune.tuning.results.record import read_record
from tests.toys import toys
from tests.tuning.virtual_search import EPOCHS, VirtualSearch, make_space


@pytest.fixture(autouse=True)
def added() -> Iterator[None]:
    with toys():
        yield


def test_layout_metric_and_schedule_train_and_are_evaluated(
    tiny: Callable[..., Experiment], planted: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        items = layout_of("charades_sta").load(planted, split).annotations
        lines = [f"{item.video}\t{item.duration}\t{item.start}\t{item.end}\t{item.query}\n" for item in items]
        (source / f"{split}.tsv").write_text("".join(lines))
    root = tmp_path / "data"
    plant(root, annotations="tsv", source=source, videos=20, feature_size=16, word_size=12, frame_rate=2.0)
    examined = examine(root)
    assert (examined.dataset, examined.fails) == ("tsv", False)

    experiment = tiny(
        **{
            "data.dataset": "tsv",
            "data.root": str(root),
            "optim.schedule": "stairs",
            "optim.lr": 0.008,
            "eval.metric": "start@0.2",
            "train.epochs": 2,
        }
    )
    run, reports = tmp_path / "run", list[EpochReport]()
    with locked(run):
        manifest = describe_run("train", experiment, fingerprint(experiment.data))
        claim(run, manifest, {"experiment.yaml": experiment.plain()})
        train_in(experiment, run, reports.append)
    assert [report.learning_rate for report in reports] == pytest.approx([0.002, 0.0005])
    assert all({"start@0.2", "start@0.3", "start@0.5"} <= report.val.keys() for report in reports)
    assert [report.value for report in reports] == [report.val["start@0.2"] for report in reports]

    result = evaluate_run(run, None, Request(resamples=20))
    assert {"start@0.2", "start@0.3", "mAP"} <= result["metrics"].keys()
    assert result["baselines"]["best_constant"]["metrics"]["start@0.5"] > 0
    assert {"start@0.2", "start@0.3"} <= set(evaluation_tables(result)[0].heads)  # of the report's page


def test_sampler_and_stopping_rule_search() -> None:
    space = make_space(sampler={"name": "ladder"}, early_stopping={"name": "odd"})
    search = VirtualSearch(space, limit=6)
    assert search.start()
    trials = search.trials
    assert [trial.params["optim.lr"] for trial in trials] == pytest.approx([1e-4 * 10 ** (0.3 * n) for n in range(6)])
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED] * 3
    assert [len(trial.intermediate_values) for trial in trials] == [EPOCHS, 1] * 3


def test_column_is_shown_everywhere(make_search: Callable[..., Path], entry: Callable[..., FrozenTrial]) -> None:
    run = make_search([entry("complete", [0.1 * number]) for number in range(1, 5)])
    record = read_record(run)
    rows = record.rows()
    assert [row["luck"] for row in rows] == [21, 14, 7, 0]
    write_leaderboard(run, rows)
    assert (run / "leaderboard.csv").read_text() == csv_text(rows)
    assert csv_text(rows).splitlines()[0].endswith(",reason,luck")
    assert [row["luck"] for row in json.loads(json_text(rows))] == [21, 14, 7, 0]
    console = Console(file=io.StringIO(), width=160)
    console.print(leaderboard_table(rows, list(record.space.parameters), record.metric))
    head, _, first, *_ = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "luck" in head.split()
    assert "21" in first.split()
    html = Builder(run, views=0).build().html
    assert 'title="What the number of the trial promises"' in html
    assert '<td data-sort="21.0" class="num">21</td>' in html


@pytest.mark.parametrize(
    ("model", "key", "value", "told"),
    [
        (SearchSpace, "sampler", {"name": "lader"}, "'lader' is wrong: no such sampler; did you mean ladder?"),
        (SearchSpace, "early_stopping", {"name": "?"}, "'?' is wrong: no such stopping rule; choose one of asha, "),
    ],
)
def test_names_are_offered(model: Any, key: str, value: Any, told: str) -> None:
    parameters = {"optim.lr": {"type": "float", "low": 0.1, "high": 1.0}}
    with pytest.raises(ConfigError) as caught:
        build(model, {"name": "s", "experiment": "x", "parameters": parameters, key: value}, "file")
    assert f"file: {key}.name: {told}" in str(caught.value)
    assert "ladder: in steps" in reference(SearchSpace)
    assert "stairs: halved each quarter" in reference(Experiment)
    assert "ladder" in space_schema()["$defs"]["SamplerConfig"]["properties"]["name"]["enum"]
    assert "tsv" in experiment_schema()["$defs"]["DataConfig"]["properties"]["dataset"]["enum"]
    with pytest.raises(ValueError, match="sampler ladder exists already"):
        SAMPLERS.add("ladder", SAMPLERS["random"])


def test_every_row_names_what_there_is() -> None:
    rows = [
        *((row.build, row.show) for row in SAMPLERS.values()),
        *((row.build,) for row in (*STOPPING_RULES.values(), *SCHEDULES.values())),
        *((row.per_query,) for row in METRICS.values()),
        *((row.layout,) for row in LAYOUTS.values()),
    ]
    assert all(resolve(reference) is not None for references in rows for reference in references if reference)


@pytest.mark.parametrize("name", ["R1@0.50", "R0@0.5", "r1@0.5", "R1@1.5", "R1@", "mAP@x", "start", "", "R1@0.5 "])
def test_no_metric_is_guessed(name: str) -> None:
    wanted = r"is unknown; write one such as R1@0\.5, mIoU, dR1@0\.5, allR1@0\.5, mAP@0\.5, mAP, start@0\.5"
    with pytest.raises(ValueError, match=wanted):
        find_metric(name)
