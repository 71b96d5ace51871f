"""The live table fits the terminal, says what there is, and holds still; elsewhere a line per trial."""

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from rich.console import Console

from cdn_tune.cli.show import live, output
from cdn_tune.cli.show.live import LiveTable, SearchProgress, objective_directions
from cdn_tune.cli.show.tables import failure_lines, leaderboard_table, search_summary
from cdn_tune.config.space import BudgetConfig, Objective
from cdn_tune.tuning.results.leaderboard import leaderboard

Entry = Callable[..., FrozenTrial]
PARAMETERS = ["optim.lr", "model.clip_pool", "model.attention_steps", "model.map.layers", "model.map.kernel_size"]
BOTH = [Objective(metric="R1@0.5"), Objective(metric="parameters")]


def make_rows(trials: list[FrozenTrial], several: bool = False) -> list[dict[str, Any]]:
    for number, trial in enumerate(trials):
        trial.number = number
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    return leaderboard(trials, PARAMETERS, ["R1@0.5", "mIoU"], directions=directions[: 1 + several], gpus=0.5)


def some_trials(entry: Entry, running: int = 2) -> list[FrozenTrial]:
    return [
        entry("complete", [0.2, 0.4512, 0.3], lr=2e-3, kernels=[3, 5], steps=2),
        entry("pruned", [0.1]),
        entry("failed", role="refused", reason="parameters <= 4e8 does not hold"),
        entry("failed", reason="out of memory: 2.00 GiB more", failure="memory"),
        *(entry("running", [0.1, 0.2][: number % 3], kernels=[3, 5, 5]) for number in range(running)),
    ]


def state(rows: list[dict[str, Any]], **more: Any) -> Any:
    plain = {
        "limit": 20,
        "slots": 2,
        "finished": True,
        "elapsed": 3600.0,
        "gpu_hours": 0.5,
        "halted": None,
        "lines": (),
    }
    return SimpleNamespace(rows=rows, **{**plain, **more})


def render(shown: Any, width: int, height: int = 24) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
    )
    console.print(shown)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


def table(shown: Any, objectives: Any = (), budget: Any = None) -> LiveTable:
    return LiveTable(shown, PARAMETERS, "R1@0.5", objective_directions(objectives), budget or BudgetConfig())


@pytest.mark.parametrize("width", [80, 160])
def test_everything_is_said(entry: Entry, width: int) -> None:
    budget = BudgetConfig(hours=3.0, gpu_hours=2.0, target=0.5)
    text = " ".join(" ".join(render(table(state(make_rows(some_trials(entry))), budget=budget), width)).split())
    assert "3/20 ended, 2 at a time; 5 trials: 1 complete, 1 pruned, 1 failed, 2 running" in text
    assert "besides, 1 refused proposal" in text
    assert "1 h so far 3 trials/h 50 queries/s 0.5 GPU-h ETA" in text
    assert "left: 17 trials, 2 h, 1.5 GPU-h, 0.0488 to the target" in text
    best = "best val R1@0.5 0.4512, trial 0, epoch 2: lr=0.0020 clip_pool=attention attention_steps=2 layers=2"
    assert f"{best} kernel_size=3,5" in text
    assert re.search(r"5 [━╸╺ ]+1/3 0\.1000 10\.0 s lr=0\.0010", text)
    assert re.search(r"4 [━╸╺ ]*0/3 -- ", text)  # nothing reported yet


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("running", [0, 1, 9, 64])
@pytest.mark.parametrize("several", [False, True])
def test_it_fits_a_terminal_of_24_rows(entry: Entry, width: int, running: int, several: bool) -> None:
    trials = some_trials(entry, running) + [
        entry("complete", [place / 10], values=[place / 10, 100.0 * place] if several else None, parameters=100 * place)
        for place in range(1, 7)
    ]
    if several:
        trials = trials[1:]
    shown = state(make_rows(trials, several), halted="3 trials in a row failed " + "before their first epoch " * 20)
    lines = render(table(shown, BOTH if several else ()), width)
    assert len(lines) <= 24 if width > 40 else len(lines) <= 30
    assert max(map(len, lines)) <= width
    if running == 64:
        assert any(re.fullmatch(r"and \d+ more running *", line) for line in lines)
    assert "no further trial starts" in " ".join(lines)


def test_unknown_is_not_guessed(entry: Entry) -> None:
    lines = render(table(state(make_rows([entry("running")]), elapsed=0.0, finished=False)), 160)
    text = " ".join(lines)
    assert "ETA --" in text
    assert "-- trials/h" in text
    assert "-- queries/s" in text
    assert "best val R1@0.5 --" in text


def test_a_halted_search_has_no_end_in_sight(entry: Entry) -> None:
    text = " ".join(render(table(state(make_rows(some_trials(entry)), halted="broken data")), 160))
    assert "ETA --" in text
    assert "no further trial starts: broken data" in text


def test_several_objectives_show_the_front(entry: Entry) -> None:
    trials = [
        entry("complete", [0.5], values=[0.5, 3e6], parameters=3_000_000),
        entry("complete", [0.4], values=[0.4, 1e6], parameters=1_000_000),
        entry("complete", [0.3], values=[0.3, 2e6], parameters=2_000_000),
    ]
    rows = make_rows(trials, several=True)
    text = " ".join(render(table(state(rows), BOTH), 160))
    assert "Pareto front of 2" in text
    assert "best R1@0.5 0.5000, trial 0" in text
    assert "best parameters 1,000,000, trial 1" in text
    summary = "\n".join(render(search_summary(rows, PARAMETERS, "R1@0.5", ["R1@0.5", "parameters"]), 160))
    assert "Pareto front of 2: trials 0, 1" in summary
    assert re.search(r"3\s+2\s+complete\s+0\.3000\s+2,000,000\s+1/3\s+10\.0 s\s+0\.0010", summary)  # not marked


def test_lines_where_there_is_no_terminal(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    for module in (live, output):
        monkeypatch.setattr(module, "err", Console(file=file, width=140))
    trials = some_trials(entry)
    progress = SearchProgress(PARAMETERS, "R1@0.5")
    with progress:
        progress.on_change(state(make_rows(trials[:1]), finished=False))  # was there before: not told again
        progress.on_change(state(make_rows(trials), finished=False))
        progress.on_change(state(make_rows(trials), finished=False))
        lines = file.getvalue().splitlines()
        assert len(lines) == 5
        assert lines[0].startswith("[1/20] 1 trials: 1 complete; best val R1@0.5 0.4512, trial 0, ETA ")  # at once
        assert lines[1].startswith("[2/20] trial 1 pruned: val R1@0.5 0.1000 after 1/3 epochs (lr=0.0010")
        assert "[3/20] trial 3 failed: out of memory: 2.00 GiB more" in lines[2]  # each its own number
        assert ", ETA " in lines[2]
        assert [line.split(" (")[0] for line in lines[3:]] == ["trial 4 running", "trial 5 running"]
        monkeypatch.setattr(live, "_SILENT_SECONDS", 0.0)
        progress.on_change(state(make_rows(trials), finished=False))
        assert "[3/20] 5 trials: 1 complete, 1 pruned, 1 failed, 2 running" in file.getvalue().splitlines()[-1]


def test_a_failure_that_was_tried_again_is_not_counted(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    for module in (live, output):
        monkeypatch.setattr(module, "err", Console(file=file, width=140))
    trials = [entry("failed", reason="lost"), entry("complete", [0.2], retry_of=0), entry("complete", [0.3])]
    with SearchProgress(PARAMETERS, "R1@0.5") as progress:
        progress.on_change(state([], limit=2))
        progress.on_change(state(make_rows(trials), limit=2))
    assert [line[:13] for line in file.getvalue().splitlines()[1:]] == [
        "[0/2] trial 0",
        "[1/2] trial 1",
        "[2/2] trial 2",
    ]


def test_a_line_for_each_pause_and_promotion(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    for module in (live, output):
        monkeypatch.setattr(module, "err", Console(file=file, width=140))
    with SearchProgress(PARAMETERS, "R1@0.5") as progress:
        for waits in (True, True, False, True):  # it was paused before the first call
            paused = entry("running", [0.2], paused=1, promoted=0 if waits else 1)
            progress.on_change(state(make_rows([paused, entry("complete", [0.1])]), limit=2))
    first, *lines = file.getvalue().splitlines()
    assert "1 complete, 1 paused; best val R1@0.5 0.2000, trial 0" in first
    assert [line.split(" (")[0] for line in lines] == [
        "trial 0 running",
        "trial 0 paused: val R1@0.5 0.2000 after 1/3 epochs",
    ]


def test_an_end_in_sight_is_a_second_away_at_least(entry: Entry) -> None:
    """Trials of a few milliseconds cost 0.0 s each; while some are left the search is not over."""
    rows = make_rows([entry("complete", [0.1], seconds=0.0), entry("running", [0.1], seconds=0.0)])
    shown = table(state(rows, finished=False, limit=4))
    assert "ETA 1 s" in " ".join(render(shown, 160))
    shown._taken -= 5.0  # nothing has been reported since
    assert "ETA --" in " ".join(render(shown, 160))


def test_gpu_hours_are_shown_where_there_are_some(entry: Entry) -> None:
    rows = make_rows(some_trials(entry))
    assert "GPU-h" not in " ".join(render(table(state(rows, gpu_hours=0.0)), 160))
    assert "0 GPU-h" in " ".join(render(table(state(rows, gpu_hours=0.0), budget=BudgetConfig(gpu_hours=1.0)), 160))


def test_a_running_trial_that_is_ahead_is_shown(entry: Entry) -> None:
    lines = render(table(state(make_rows([entry("complete", [0.3]), entry("running", [0.2, 0.4, 0.1])]))), 160)
    assert any(line.startswith("best val R1@0.5 0.3000, trial 0, epoch 1") for line in lines)
    assert any(line.startswith("ahead, running val R1@0.5 0.4000, trial 1, epoch 2: lr=") for line in lines)
    behind = render(table(state(make_rows([entry("complete", [0.3]), entry("running", [0.2])]))), 160)
    assert not any(line.startswith("ahead") for line in behind)


def test_nothing_runs_in_a_search_that_has_ended(entry: Entry) -> None:
    text = " ".join(render(search_summary(make_rows(some_trials(entry)), PARAMETERS, "R1@0.5"), 160, 100))
    assert "5 trials: 1 complete, 1 pruned, 1 failed, 2 unfinished" in text
    assert "running" not in text


def test_a_terminal_is_drawn_on_and_left_clean(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    terminal = Console(file=file, width=80, height=24, force_terminal=True, legacy_windows=False)
    monkeypatch.setattr(live, "err", terminal)
    with SearchProgress(PARAMETERS, "R1@0.5") as progress:
        progress.on_change(state(make_rows(some_trials(entry))))
        assert progress._live is not None
        progress._live.refresh()
    assert "best val R1@0.5" in file.getvalue()
    assert file.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in file.getvalue()[-200:]  # the cursor is back


@pytest.mark.parametrize("width", [80, 160])
def test_the_leaderboard_folds_well(entry: Entry, width: int) -> None:
    rows = make_rows([*some_trials(entry), *(entry("complete", [place / 100]) for place in range(20))])
    lines = render(search_summary(rows, PARAMETERS, "R1@0.5"), width, 100)
    assert max(map(len, lines)) <= width
    heads = lines[0].split()
    assert heads[:4] == ["rank", "trial", "state", "val"]
    assert ("kernel_size" in heads) == (width == 160)
    ranks = [line.split()[0] for line in lines if re.match(r" +\d+ +\d+ +(complete|pruned)", line)]
    assert ranks == [str(rank) for rank in range(1, 11)]  # ten rows, and nothing refused among them
    text = " ".join(" ".join(lines).split())
    assert "kernel_size=3,5" in text if width == 80 else "3,5" in text
    assert "the 10 best are shown" in text
    assert "1 failed, out of memory: out of memory: 2.00 GiB more" in text


def test_reasons_are_summed_up_by_kind(entry: Entry) -> None:
    trials = [
        entry("failed", reason="loss nan", failure="not_finite"),
        entry("failed", reason="CUDA\nout of memory", failure="memory"),
        entry("failed", reason="loss nan", failure="not_finite"),
        entry("failed", reason="loss inf", failure="not_finite"),
        entry("failed", role="refused", reason="too large"),
    ]
    assert failure_lines(make_rows(trials)) == [
        "3 failed, not finite: loss nan (and 1 more for reasons like it); first trial 0",
        "1 failed, out of memory: CUDA out of memory",
    ]


def test_text_is_no_markup(entry: Entry) -> None:
    rows = make_rows([entry("failed", reason="[bold]key[/bold] [0]")])
    assert "[bold]key[/bold] [0]" in " ".join(render(leaderboard_table(rows, PARAMETERS, "R1@0.5"), 160))
