"""Leaderboard, endings, spending and evaluation as tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment
from cdn_tune.report.course import sparkline
from cdn_tune.report.figures import duration, number
from cdn_tune.report.record import RunRecord, read_record
from cdn_tune.report.results import Cell, cards, tables
from cdn_tune.report.trials import failures, front, leaderboard, segments_of, spending
from cdn_tune.tuning.results.leaderboard import short_names

NOW = 2e9


@pytest.fixture
def record(make_run: Callable[..., Path], tiny: Callable[..., Experiment]) -> RunRecord:
    return read_record(make_run(tiny(), trials=24, evaluated=True, objectives=2))


def test_the_leaderboard_holds_every_trial_ranked_first(record: RunRecord) -> None:
    board = leaderboard(record)
    heads = [head for head, _, _ in board.heads]
    assert {"kernel_size", "layers", "proposals", "lr", "batch_size", "reason"} <= set(heads)
    assert len(board.rows) == 24
    ranks = [rank for _, rank, _ in board.rows if rank is not None]
    assert ranks == list(range(1, len(ranks) + 1))
    values = [cells[heads.index("val R1@0.5")].sort for _, rank, cells in board.rows if rank is not None]
    assert values == sorted(values, reverse=True)
    assert [rank for _, rank, _ in board.rows][len(ranks) :] == [None] * (24 - len(ranks))
    assert all(len(cells) == len(heads) for _, _, cells in board.rows)


def test_what_was_never_trained_is_told_apart(record: RunRecord) -> None:
    trials = list(record.trials)
    trials[0].user_attrs["role"] = "copy"
    state = next(state for state, _, cells in leaderboard(record).rows if cells[1].text == "0")
    assert state == "copy"
    assert sum(row["trials"] for row in spending(record, NOW)) == len(trials) - 1


def test_failures_are_grouped_up_to_their_numbers(record: RunRecord) -> None:
    groups = failures(record)
    assert [group["state"] for group in groups] == ["failed", "pruned"]
    assert groups[0]["trials"] == [7, 18]
    assert "step 7" in groups[0]["reason"]
    assert groups[0]["kind"] == "not finite"


def test_time_is_that_of_the_segments(record: RunRecord) -> None:
    by_state = {row["state"]: row for row in spending(record, NOW)}
    assert by_state["failed"]["time"] == duration(2 * 60)
    assert by_state["failed"]["gpu_hours"] == f"{0.5 * 120 / 3600:.2f}"
    assert sum(row["share"] for row in by_state.values()) == pytest.approx(1)
    assert len(segments_of(record.trials[0], NOW)) == 2


def test_time_of_paused_trials_and_of_confirmations_is_told_apart(record: RunRecord) -> None:
    paused, confirmation = [trial for trial in record.trials if trial.state == TrialState.COMPLETE][:2]
    paused.state = TrialState.RUNNING
    paused.user_attrs["paused"] = 1
    confirmation.user_attrs |= {"role": "confirmation", "confirms": 0, "with_seed": 1}
    counts = {row["state"]: row["trials"] for row in spending(record, NOW)}
    assert counts["paused"] == counts["confirmation"] == 1
    assert sum(counts.values()) == len(record.trials)


def test_a_run_without_segments_falls_back_on_the_studys_times(record: RunRecord) -> None:
    trial = record.trials[0]
    del trial.user_attrs["segments"]
    assert trial.datetime_start
    assert trial.datetime_complete
    assert segments_of(trial, NOW) == [
        ("this run", trial.datetime_start.timestamp(), trial.datetime_complete.timestamp())
    ]
    trial.datetime_complete = None
    assert segments_of(trial, NOW)[0][2] == NOW


def test_the_front_is_that_of_all_objectives(record: RunRecord) -> None:
    found = front(record)
    assert found
    for trial in found:
        assert not any(
            other.values
            and other.values[0] >= trial.values[0]
            and other.values[1] <= trial.values[1]
            and other.values != trial.values
            for other in record.trials
        )


def test_cards_have_intervals_and_the_constant_answer(record: RunRecord) -> None:
    card = next(card for card in cards(record.evaluation or {}) if card.metric == "R1@0.5")
    assert (card.value, card.interval, card.blind) == (
        "60.11 ± 1.20",
        "55.1\u2009\u2013\u200965.1",
        "best constant answer 35.35",
    )


def test_every_part_with_metrics_is_a_table(record: RunRecord) -> None:
    found = {table.title: table for table in tables(record.evaluation or {})}
    assert list(found) == [
        "",
        "advantage over the query-blind list, paired by query",
        "over seeds",
        "by kind of query: length, share of the video",
    ]
    assert [label for label, _ in found[""].rows] == [
        "CDN, mean over 2 seeds",
        "best constant answer",
        "random moments",
    ]
    assert found[""].rows[2][1][1] == Cell("13.00", "10.0\u2009\u2013\u200916.0")
    assert [label for label, _ in found["over seeds"].rows] == ["seed 0", "seed 1"]
    assert [cells[0].value for _, cells in list(found.values())[1].rows] == ["25.00", "0.0001"]
    kinds = found["by kind of query: length, share of the video"]
    assert kinds.heads == ["queries", "videos", "R1@0.5"]
    assert kinds.rows[0] == ("under 10 %", [Cell("40"), Cell("9"), Cell("40.00")])


def test_several_checkpoints_are_told_apart(record: RunRecord) -> None:
    models = [{"checkpoint": f"best/{at}.pt", "seed": 0, "val": {}, "metrics": {"mIoU": 0.5}} for at in range(2)]
    found = tables({"metrics": {"mIoU": 0.5}, "models": models})
    assert [label for label, _ in found[1].rows] == ["best/0.pt", "best/1.pt"]


def test_published_rows_stand_beside_real_features_only(record: RunRecord) -> None:
    evaluation = record.evaluation or {}
    assert not any("published" in table.title for table in tables(evaluation))
    real = next(table for table in tables({**evaluation, "planted": False}) if table.title == "published results")
    assert real.rows == [("2D-TAN, pool", [Cell("VGG"), Cell("40.94")])]


def test_parts_of_later_versions_are_shown_if_they_are_tables() -> None:
    evaluation = {"metrics": {"mIoU": 0.5}, "by_month": {"may": {"mIoU": 0.4}}, "words": ["x"], "remark": {"a": "b"}}
    assert [(table.title, table.heads) for table in tables(evaluation)] == [("", ["mIoU"]), ("by month", ["mIoU"])]


def test_metrics_alone_are_enough(record: RunRecord) -> None:
    bare = replace(record, evaluation={"metrics": {"mIoU": 0.5}, "planted": True})
    assert cards(bare.evaluation or {})[0].interval == ""
    assert [table.title for table in tables(bare.evaluation or {})] == [""]


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.5, "R1@0.5", "50.00"),
        (0.5, "val mIoU", "50.00"),
        (0.25, "latency_ms", "0.25"),
        (1e-4, "", "1.00e-04"),
        (3, "", "3"),
        (12345, "", "12\u202f345"),
        (True, "", "yes"),
        (None, "", "\u2013"),
        (float("nan"), "R1@0.5", "nan"),
    ],
)
def test_numbers(value: Any, metric: str, text: str) -> None:
    assert number(value, metric) == text


def test_durations_and_names() -> None:
    assert [duration(value) for value in (4.25, 59, 61, 7500, 90_000)] == [
        "4.2 s",
        "59 s",
        "1 min 01 s",
        "2 h 05 min",
        "1 d 01 h",
    ]
    assert short_names(["a.lr", "b.size", "c.size"]) == {"a.lr": "lr", "b.size": "b.size", "c.size": "c.size"}


def test_the_sparkline_rises_to_the_best(record: RunRecord) -> None:
    drawn = sparkline(record)
    assert drawn
    assert len(drawn.dots) == 24
    heights = [float(y) for y in re.findall(r"[MV](?:[\d.]+ )?([\d.]+)", drawn.path)]
    assert heights == sorted(heights, reverse=True)  # y points down
    assert heights[-1] == min(y for _, y, state in drawn.dots if state in ("complete", "pruned"))
    assert record.search
    alone = replace(record.search, entries=record.trials[:1])
    assert sparkline(replace(record, search=alone)) is None
