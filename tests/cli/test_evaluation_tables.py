"""Tables of an evaluation at any width: every number whole, the headline last."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from cdn_tune.cli.show import evaluation as shown
from cdn_tune.cli.show.tables import Stacked, leaderboard_table
from cdn_tune.evaluation.summary import BASELINES
from cdn_tune.report.results import tables as page_tables
from cdn_tune.tuning.results.leaderboard import Shape, columns_of

NAMES = [*(f"R{n}@{iou}" for n in (1, 5) for iou in (0.3, 0.5, 0.7)), "mIoU", "dR1@0.5", "allR5@0.5", "mAP@0.5", "mAP"]


def entry(first: float, **more: Any) -> dict[str, Any]:
    metrics = {name: first + at / 1000 for at, name in enumerate(NAMES)}
    return {
        "metrics": metrics,
        "intervals": {name: [value - 0.1, value + 0.1] for name, value in metrics.items()},
        **more,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    gain = entry(-0.2)
    return entry(
        0.41,
        dataset="charades_sta",
        planted=True,
        split="test",
        queries=3720,
        videos=1334,
        without_moment=[{"id": "charades_sta_test.txt:7", "reason": "moment 5 to 5 s is empty within the video's 9 s"}],
        predictions={"file": "theirs.jsonl"},
        groups={"position": [entry(0.61, label="first third", queries=1000, videos=500)]},
        baselines={name: entry(0.21 + at / 10) for at, name in enumerate(BASELINES)},
        parts=[
            entry(0.52, label="iid", queries=823, videos=333, query_blind=entry(0.33)),
            entry(0.38, label="ood", queries=3375, videos=1442, query_blind=entry(0.04)),
        ],
        gaps=[{"of": "iid", "minus": "ood", "difference": gain["metrics"], "intervals": gain["intervals"]}],
        advantage={"over": "query_blind", "difference": gain["metrics"], "intervals": gain["intervals"]},
    )


def at_width(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(shown, "out", Console(file=text, width=width))
    return text


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_number_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: Any, result: dict[str, Any], width: int) -> None:
    text = at_width(monkeypatch, width)
    shown.print_evaluation_tables(result)
    printed = text.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    for part in (
        result,
        *result["baselines"].values(),
        *result["parts"],
        *(each["query_blind"] for each in result["parts"]),
    ):
        for name in NAMES:
            assert f"{100 * part['metrics'][name]:.2f}" in printed
    for name in NAMES:
        assert name in printed
        assert f"({100 * result['intervals'][name][0]:.1f}-{100 * result['intervals'][name][1]:.1f})" in printed
    assert "iid, 823 queries" in printed
    assert "iid - ood" in printed
    (group,) = result["groups"]["position"]
    assert f"{100 * group['metrics']['mIoU']:.1f} ({100 * group['intervals']['mIoU'][0]:.1f}-" in printed
    assert "charades_sta_test.txt:7 counts as a miss" in capsys.readouterr().out


def test_the_headline_is_short_and_rejection_says_of_what(result: dict[str, Any]) -> None:
    assert len(shown.headline(result | {"seeds": None, "models": [], "experiment": {}, "protocol": "honest"})) < 200
    shares = ("auroc", "balanced_accuracy", "rejected", "wrongly_rejected")
    found = {"metrics": dict.fromkeys(shares, 0.5), "intervals": dict.fromkeys(shares), "threshold": 0.1}
    found |= {"absent": "sentences of other videos", "absent_queries": 7}
    assert shown.rejection_lines({"rejection": found})[-1].endswith("50.0 % of those that are in the video")


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_comparison_is_whole(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], width: int) -> None:
    side = {"value": 0.4567, "interval": [0.4012, 0.5]}
    row = {"first": side, "second": side, "difference": 0.0847, "interval": [-0.0102, 0.1], "p_value": 0.0312}
    text = at_width(monkeypatch, width)
    shown.out.print(shown.comparison_table({**result, "metrics": [{"name": "R1@0.5", **row}]}))
    for number in ("45.67 (40.12-50.00)", "+8.47 (-1.02, +10.00)", "0.0312"):
        assert number in text.getvalue()


def test_columns_stay_in_order_and_each_is_there_once() -> None:
    table = Table(title="one title")
    for name in ("label", *"abcdef"):
        table.add_column(name)
    table.add_row("a label of several words", *(str(number) * 9 for number in range(6)), style="bold")
    text = io.StringIO()
    Console(file=text, width=40).print(Stacked(table))
    found = text.getvalue()
    assert re.findall(r"\d{9}", found) == [str(number) * 9 for number in range(6)]
    assert found.count("one title") == 1
    assert found.count("label ") >= 2  # beside each part


def test_a_baseline_has_one_name(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]) -> None:
    text = at_width(monkeypatch, 140)
    shown.print_evaluation_tables(result)
    on_page = [label for label, _ in page_tables(result)[0].rows]
    for name in BASELINES.values():
        assert name in text.getvalue()
        assert name in on_page


@pytest.mark.parametrize("width", [30, 50, 200])
def test_a_leaderboard_is_whole(width: int) -> None:
    columns = columns_of(Shape(["optim.lr"], ["R1@0.5"], "R1@0.5"))
    row = dict.fromkeys((column.key for column in columns), "")
    row |= {"rank": 1, "trial": 1234, "state": "complete", "value": 0.8765, "epochs": 112, "seconds": 3661.0}
    text = io.StringIO()
    Console(file=text, width=width).print(leaderboard_table([row | {"optim.lr": 0.0123}], ["optim.lr"], "R1@0.5"))
    for number in ("1,234", "0.8765", "112", "1:01:01", "0.0123"):
        assert number in text.getvalue()
    assert "…" not in text.getvalue()
