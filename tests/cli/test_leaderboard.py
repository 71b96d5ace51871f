"""`cdn-tune leaderboard` and `search status` as a person meets them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial
from typer.testing import CliRunner, Result

from cdn_tune.cli import app
from cdn_tune.config import Experiment, load_experiment
from cdn_tune.training.runs.checkpoint import BEST, load_checkpoint
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.results.record import read_record

Entry = Callable[..., FrozenTrial]
MakeSearch = Callable[..., Path]
Tiny = Callable[..., Experiment]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["leaderboard", *map(str, arguments)])


@pytest.fixture
def run(make_search: MakeSearch, entry: Entry) -> Path:
    return make_search(
        [
            entry("complete", [0.2, 0.4, 0.3], lr=2e-3, kernels=[3, 5], steps=2),
            entry("pruned", [0.1], lr=5e-3, reason="stopped early after epoch 1"),
            entry("failed", role="refused", reason="parameters <= 4e8 does not hold"),
            entry("failed", reason="=broken,\nreally", failure="deterministic"),
            entry("complete", [0.3, 0.3, 0.3], lr=1e-4, kernels=[5]),
            entry("running", [0.35]),
        ],
        planted=True,
        trials=8,
    )


def test_the_table(run: Path) -> None:
    result = invoke(run)
    assert result.exit_code == 0, result.output
    for text in ("val R1@0.5", "0.4000", "kernel_size", "planted data", "1 refused proposal", "would fail again"):
        assert text in result.output
    assert "does not hold" not in result.output


def test_filter_sort_top_and_columns(run: Path) -> None:
    chosen = invoke(run, "--filter", "state != failed", "--filter", "lr>=1e-3", "--sort", "-lr", "--csv", "--top", 2)
    assert chosen.exit_code == 0, chosen.output
    assert [row["trial"] for row in csv.DictReader(io.StringIO(chosen.stdout))] == ["1", "0"]
    columns = invoke(run, "--columns", "trial,lr,val R1@0.5", "--json", "--sort", "trial", "--top", 2)
    assert json.loads(columns.stdout) == [
        {"trial": 0, "optim.lr": 0.002, "val R1@0.5": 0.4},
        {"trial": 1, "optim.lr": 0.005, "val R1@0.5": 0.1},
    ]
    table = invoke(run, "--columns", "trial,reason", "--filter", "state == failed")
    assert "=broken, really" in table.output
    refused = invoke(run, "--filter", "state == refused")
    assert "parameters <= 4e8 does not hold" in refused.output


def test_machines_get_every_entry(run: Path) -> None:
    rows = json.loads(invoke(run, "--json").stdout)
    assert [row["trial"] for row in rows] == [0, 4, 1, 5, 3, 2]
    assert rows[0]["model.map.kernel_size"] == [3, 5]
    read = list(csv.DictReader(io.StringIO(invoke(run, "--csv").stdout)))
    assert read[4]["reason"] == "'=broken,\nreally"


def test_importance_is_printed(run: Path) -> None:
    result = invoke(run, "--importance")
    assert result.exit_code == 0, result.output
    assert "importance for val R1@0.5 by ped-anova, from 2 complete trials" in result.output
    assert "2 complete trials are few" in result.output
    assert "optim.lr" in result.output
    named = invoke("--importance", "fanova", run)
    assert named.exit_code == 0, named.output
    assert "by fanova" in named.output
    assert "left out: model.attention_steps, conditional: sampled in 1 of 2 trials" in named.output


def test_a_trial_becomes_the_experiment_that_it_trained(run: Path, tmp_path: Path) -> None:
    record = read_record(run)
    folder = tmp_path / "trained"
    train_in(record.experiment(0), folder, lambda _: None)
    trained = load_checkpoint(folder / BEST).experiment
    file = tmp_path / "best trial.yaml"
    result = invoke(run, "--config", 0, "--out", file)
    assert result.exit_code == 0, result.output
    assert load_experiment(file) == trained
    assert (trained.optim.lr, trained.model.map.kernel_sizes, trained.model.attention_steps) == (2e-3, (3, 5), 2)
    first = file.read_text().splitlines()[0]
    assert first == f"# cdn-tune train '{file}' --run runs/tiny-search-trial-0000"
    assert "val R1@0.5 0.4000 after epoch 2, planted data" in file.read_text()
    printed = tmp_path / "printed.yaml"
    printed.write_text(invoke(run, "--config", 0).stdout)
    assert load_experiment(printed) == trained


def test_many_layers_keep_their_order(make_search: MakeSearch, entry: Entry) -> None:
    kernels = [3, 5, 3, 3, 5, 5, 3, 5, 5, 5, 3, 3]
    trial = entry("complete", [0.5])
    size = trial.distributions["model.map.kernel_size[0]"]
    names = sorted(f"model.map.kernel_size[{layer}]" for layer in range(12))  # [10] before [2]
    trial.params = {"model.map.layers": 3, **{name: kernels[int(name[22:-1])] for name in names}}
    trial.distributions = {
        "model.map.layers": trial.distributions["model.map.layers"],
        **dict.fromkeys(names, size),
    }
    trial.params["model.map.layers"] = 12
    trial.distributions["model.map.layers"] = type(trial.distributions["model.map.layers"])(1, 12)
    run = make_search([trial])
    assert list(read_record(run).experiment(0).model.map.kernel_sizes) == kernels
    assert json.loads(invoke(run, "--json").stdout)[0]["model.map.kernel_size"] == kernels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "lrr > 1"], "did you mean optim.lr"),
        (["--sort", "vaule"], "did you mean value"),
        (["--columns", "trial,nothing-like-it"], "unknown column nothing-like-it"),
        (["--config", "77"], "has no trial 77; its trials are 0 to 5"),
        (["--config", "0", "--json"], "exclude each other"),
        (["--out", "x.yaml"], "goes with --config"),
        (["--importance", "shap"], "shap"),
        (["--storage", "sqlite:///absent.db"], "has no study yet"),
    ],
)
def test_what_is_wrong_is_one_line(run: Path, arguments: list[str], message: str) -> None:
    result = invoke(run, *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "internal error" not in result.output


def test_wrong_folders_are_told(tmp_path: Path, make_search: MakeSearch) -> None:
    absent = invoke(tmp_path / "absent")
    assert (absent.exit_code, "no such run folder" in absent.output) == (2, True)
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "manifest.json").write_text('{"kind": "train"}')
    trained = invoke(tmp_path / "trained")
    assert (trained.exit_code, "is a train run, which has no leaderboard" in trained.output) == (2, True)
    empty = invoke(make_search([]))
    assert (empty.exit_code, "has no trials yet" in empty.output) == (2, True)


def test_status_is_printed(run: Path) -> None:
    text = " ".join(CliRunner().invoke(app, ["search", "status", str(run)]).stdout.split())
    assert "tiny-search in" in text
    assert "(planted data)" in text
    assert "not running; the same command goes on; 1 unfinished trials are then taken up again" in text
    assert "4 of 8 ended: 2 complete, 1 pruned, 1 failed, 1 unfinished" in text
    assert "1 refused proposal" in text
    assert "1 would fail again" in text
    assert "best val R1@0.5 0.4000, trial 0, epoch 2: lr=0.0020 clip_pool=attention" in text
    assert "ETA" not in text  # of a search that does not run
    plain = CliRunner().invoke(app, ["search", "status", str(run), "--json"])
    assert json.loads(plain.stdout)["counts"]["complete"] == 2
