"""Probes of trained models: one that ignores frames is warned of wherever it is shown, one that sees them is not."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import cdn_tune
from cdn_tune.cli import app
from cdn_tune.cli.show.probe import probe_headline, probe_table
from cdn_tune.config import Experiment, override
from cdn_tune.data.dataset import load_split
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.probes import PROBES
from cdn_tune.errors import RunError
from cdn_tune.evaluation import probe as probes
from cdn_tune.evaluation.evaluate import evaluate_run, remarks
from cdn_tune.evaluation.export import export_run
from cdn_tune.evaluation.probe import probe_run
from cdn_tune.evaluation.probe_file import TITLES, VERDICTS, ProbeFile, read_probe
from cdn_tune.evaluation.request import Request
from cdn_tune.model import families
from cdn_tune.report.page import Builder
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.checkpoint import BEST, build_model, load_checkpoint, save_checkpoint
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in
from tests.report.test_families import CASES

Tiny = Callable[..., Experiment]
WORDS = ("opens", "closes", "lifts", "drops")
PARTS, SIZE = 4, 8  # quarters of a video; size of features and words
OWN = Path(__file__).resolve().parents[2] / "examples/own_parts"
WARNED = "frames shuffled, the model keeps 100 % (100 to 100) of what its val R1@0.5 is above the query-blind list"


def write_data(root: Path, from_sentence: bool) -> Path:
    """Videos of four quarters, in one of which a verb happens: seen in its frames, or always the verb's own quarter."""
    random = np.random.default_rng(0)
    codes = np.eye(len(WORDS), SIZE, dtype=np.float32)
    root.mkdir()
    (root / "words.txt").write_text(
        "".join(f"{word} {' '.join(map(str, code))}\n" for word, code in zip(WORDS, codes, strict=True))
    )
    with h5py.File(root / "features.hdf5", "w") as file:
        for split, count in (("train", 60), ("val", 60), ("test", 20)):
            lines = []
            for number in range(count):
                video, frames = f"{split}{number}", 0.1 * random.standard_normal((PARTS, SIZE), dtype=np.float32)
                verbs = random.permutation(len(WORDS))[:2]
                quarters = verbs if from_sentence else random.permutation(PARTS)[:2]
                for verb, quarter in zip(verbs.tolist(), quarters.tolist(), strict=True):
                    if not from_sentence:
                        frames[quarter] += codes[verb]
                    times = {"duration": 40.0, "start": 10.0 * quarter, "end": 10.0 * (quarter + 1)}
                    lines.append(json.dumps({"video": video, **times, "query": f"{WORDS[verb]} {WORDS[verb]}"}))
                file[video] = frames
            (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a family once: ``parts`` where frames show the moment, ``blindfold`` where the sentence says it."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            root = write_data(folder / "data", from_sentence=name == "blindfold")
            data = {"dataset": "jsonl", "root": str(root), "feature_size": SIZE, "frames": PARTS}
            data |= {"word_vectors": "words.txt", "word_size": SIZE}
            plain: dict[str, Any] = {
                "name": name,
                "data": data,
                "model": {"name": name, "parts": PARTS},
                "optim": {"lr": 5e-2},
                "train": {"epochs": 8, "batch_size": 20},
                "eval": {"recalls": [1, 2], "ious": [0.5], "metric": "R1@0.5"},
            }
            experiment, run = override(plain, {}, name), folder / "run"
            with locked(run):
                manifest = describe_run("train", experiment, fingerprint(experiment.data))
                claim(run, manifest, {"experiment.yaml": experiment.plain()})
                train_in(experiment, run, ignore)
            made[name] = run
        return made[name]

    return make


@pytest.fixture(autouse=True)
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's family, and one without eyes."""
    monkeypatch.syspath_prepend(str(OWN))
    monkeypatch.setenv(
        families.ENVIRONMENT, "parts=own_parts.family:PartsConfig,blindfold=tests.evaluation.blindfold:Blindfold"
    )


@pytest.fixture
def run(make_run: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a trained run."""
    return lambda name: Path(shutil.copytree(make_run(name), tmp_path / name))


def invoke(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_model_that_ignores_frames_is_warned_of_everywhere(run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = run("blindfold")
    shown = invoke("evaluate", folder, "--probe").output
    assert f"warning: probe: {WARNED}: it does not look at when things happen" in shown
    assert "the model keeps 100 %" in shown.splitlines()[-1]
    assert "sentences of other videos, the model" not in shown
    found = json.loads((folder / "probe.json").read_text())
    assert found["metrics"]["R1@0.5"] == 1
    verdicts = {name: each["verdict"] for name, each in found["probes"].items()}
    wanted = {"frames_shuffled": "kept", "frames_mean": "kept", "other_sentences": "lost", "words_shuffled": "kept"}
    assert verdicts == {**wanted, "time_shifted": "lost"}
    assert "it answers by where moments tend to lie" in shown
    assert not (folder / "looks.jsonl").exists()  # val alone
    assert f"warning: probe: {WARNED}" in invoke("evaluate", folder).output
    page = Builder(folder, views=0).build().html
    assert 'id="probe"' in page
    assert WARNED in page
    export_run(folder, tmp_path / "out")
    assert f"> **probe: {WARNED}" in (tmp_path / "out" / "README.md").read_text()


def test_a_model_that_sees_is_not(run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = run("parts")
    assert "warning" not in invoke("evaluate", folder, "--probe").output
    found = json.loads((folder / "probe.json").read_text())
    assert found["metrics"]["R1@0.5"] > 0.9 > 0.5 > found["baselines"]["query_blind"]["metrics"]["R1@0.5"]
    verdicts = {name: each["verdict"] for name, each in found["probes"].items()}
    wanted = {"frames_shuffled": "lost", "frames_mean": "lost", "other_sentences": "lost", "words_shuffled": "kept"}
    assert verdicts == {**wanted, "time_shifted": "kept"}
    assert "probe" not in invoke("evaluate", folder).output
    page = Builder(folder, views=0).build().html
    assert 'id="probe"' in page
    assert "it does not look" not in page
    export_run(folder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Probed on 120 val queries" in card
    assert "> **probe" not in card


@pytest.mark.parametrize("family", ["cdn", "tan", "mmn", "snag"])
def test_every_family_is_probed(tiny: Tiny, tmp_path: Path, family: str) -> None:
    experiment, run = tiny(**CASES[family][0]), tmp_path / "run"
    with locked(run):
        claim(run, describe_run("train", experiment, fingerprint(experiment.data)), {})
    content = {"model": build_model(experiment).state_dict(), "epoch": 1, "val": {"R1@0.5": 0.0}, "planted": True}
    save_checkpoint(run / BEST, experiment, content)
    found = probe_run(run, None, Request(resamples=50))
    val = load_split(experiment.data, "val", experiment.model.inputs.sequences)
    wanted = evaluate_split(load_checkpoint(run / BEST).model, val, experiment.eval).metrics
    assert found["metrics"] == {name: wanted[name] for name in found["metrics"]} != {}
    for probe, each in found["probes"].items():
        assert set(each["metrics"]) == set(found["metrics"])
        assert (each["queries"] == len(val)) or probe == "time_shifted"
    assert len({each["metrics"]["mIoU"] for each in found["probes"].values()}) > 1


def test_a_model_that_knows_nothing_has_nothing_to_lose(run: Callable[[str], Path]) -> None:
    folder = run("parts")
    experiment = override(cdn_tune.open_run(folder).experiment.plain(), {}, "x")
    content = {"model": build_model(experiment).state_dict(), "epoch": 1, "val": {"R1@0.5": 0.0}, "planted": False}
    save_checkpoint(folder / "checkpoints" / "best.pt", experiment, content)
    result = probe_run(folder)
    text = io.StringIO()
    Console(file=text, width=80).print(probe_table(result))
    assert "verdict" in text.getvalue()  # its column is in a table below
    found = ProbeFile.model_validate(result)
    told = "frames shuffled, the model has nothing to lose: its val R1@0.5 is not surely above the query-blind list"
    assert probe_headline(found) == told
    assert {each.verdict for name, each in found.probes.items() if name != "time_shifted"} == {"none"}
    assert next(iter(found.warnings())).startswith("probe: val R1@0.5 is not surely above the query-blind list (")


def test_the_numbers_are_those_of_the_evaluation_and_the_same_each_time(run: Callable[[str], Path]) -> None:
    folder = run("parts")
    first, again = probe_run(folder), probe_run(folder)
    assert {**first, "created": ""} == {**again, "created": ""}
    assert json.loads((folder / "probe.json").read_text()) == again
    val = cdn_tune.open_run(folder).epochs()
    rows = val.to_dict("records") if hasattr(val, "to_dict") else val
    assert first["metrics"]["R1@0.5"] == max(row["val R1@0.5"] for row in rows)
    changed = probe_run(folder, {"eval.batch_size": 7})
    assert changed["probes"] == first["probes"]
    for found in first["probes"].values():
        for name, low_high in found["intervals"].items():
            assert low_high[0] <= found["metrics"][name] <= low_high[1]


def test_of_many_queries_whole_videos_are_drawn(
    run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probes, "MOST_QUERIES", 31)
    folder = run("parts")
    found = probe_run(folder)
    assert "on 30 of 120 queries of the val split" in Builder(folder, views=0).build().html
    export_run(folder, tmp_path / "out")
    assert "Probed on 30 of 120 val queries" in (tmp_path / "out" / "README.md").read_text()
    assert (found["queries"], found["videos"], found["of"]) == (30, 15, 120)


def test_a_probe_of_another_checkpoint_says_nothing(run: Callable[[str], Path]) -> None:
    folder = run("blindfold")
    probe_run(folder)
    result = evaluate_run(folder, None, Request(resamples=20))
    assert any(WARNED in line for line in remarks(folder, result))
    assert not list(remarks(folder, result | {"epoch": result["epoch"] + 1}))


def test_a_damaged_file_is_one_line(run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = run("blindfold")
    probe_run(folder)
    whole = json.loads((folder / "probe.json").read_text())
    for content in ("[]", "{", "", json.dumps(whole | {"epoch": "1"}), '{"probes": {"frames_shuffled": 3}}'):
        (folder / "probe.json").write_text(content)
        with pytest.raises(RunError, match="write it anew with: cdn-tune evaluate RUN --probe") as caught:
            read_probe(folder)
        assert "\n" not in str(caught.value)
    assert "probe.json: cannot be read" in invoke("evaluate", folder).output
    assert any("probe.json: cannot be read" in line for line in Builder(folder, views=0).build().notices)
    export_run(folder, tmp_path / "out")


def test_texts_of_a_file_are_bounded_and_no_markup(run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = run("parts")
    evil = "<img src=x onerror=alert(1)>[a](http://e.org) **b**\n# c | d `e` www.f.org" + "x" * 10_000
    content = probe_run(folder) | {"data_changed": [evil, *(f"{at}.txt" for at in range(500))]}
    (folder / "probe.json").write_text(json.dumps(content))
    found = read_probe(folder)
    assert found is not None
    (warning, *_) = found.warnings()
    assert "\n" not in warning
    assert len(warning) < 600
    assert "18.txt, 481 more changed since" in warning
    export_run(folder, tmp_path / "out")
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    (line,) = [line for line in lines if "481 more" in line]
    assert r"\<img src=x onerror=alert(1)\>\[a\](http\://e.org) \*\*b\*\*" in line
    assert r"# c \| d \`e\` www\.f.org" in line
    assert not any(line.startswith("# c") for line in lines)
    for wrong in ({"checkpoint": "x" * 5000}, {"metrics": {"a b": 0.5}}, {"metrics": {"x" * 101: 0.5}}):
        (folder / "probe.json").write_text(json.dumps(content | wrong))
        with pytest.raises(RunError, match="write it anew"):
            read_probe(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seeds", "2"], "--seeds does not go with --probe"),
        (["--protocol", "published"], "--protocol does not go with --probe"),
        (["--predictions", "x"], "--predictions does not go with --probe"),
        (["--split", "val"], "--split does not go with --probe"),
        (["--data", "x"], "--data does not go with --probe"),
        (["--dataset", "jsonl"], "--dataset does not go with --probe"),
        (["--output", "x.json"], "--output does not go with --probe"),
        (["--workers", "2"], "--workers does not go with --probe"),
        (["model.width=3"], "after training only"),
        (["data.root=/nowhere"], "/nowhere"),
        (["--checkpoint", "none.pt"], "--checkpoint none.pt: no such file"),
    ],
)
def test_mistakes_are_one_line(run: Callable[[str], Path], options: list[str], words: str) -> None:
    folder = run("parts")
    result = invoke("evaluate", folder, "--probe", *options, code=2)
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (folder / "probe.json").exists()


def test_data_that_do_not_do(run: Callable[[str], Path], tmp_path: Path) -> None:
    folder, root = run("parts"), tmp_path / "data"
    shutil.copytree(cdn_tune.open_run(folder).experiment.data.root, root)
    lines = (root / "val.jsonl").read_text().splitlines(keepends=True)
    (root / "val.jsonl").write_text("".join(lines[:2]))  # of one video
    moved = f"data.root={root}"
    assert "its data have changed since the run (" in invoke("evaluate", folder, "--probe", moved, code=2).output
    told = invoke("evaluate", folder, "--probe", "--other-data", moved, code=2).output
    assert "no other video of the split has another sentence to ask" in told
    (root / "val.jsonl").write_text("")
    assert "val.jsonl" in invoke("evaluate", folder, "--probe", "--other-data", moved, code=2).output
    shutil.rmtree(folder / "checkpoints")
    assert "has no checkpoint of a finished epoch yet" in invoke("evaluate", folder, "--probe", code=2).output
    assert not (folder / "probe.json").exists()


def test_from_python_and_as_json(run: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = run("blindfold")
    stages = list[str]()
    found = cdn_tune.open_run(folder).probe(checkpoint=folder / BEST, on_stage=stages.append)
    assert "answering val" in stages
    assert WARNED in caplog.text
    printed = json.loads(invoke("evaluate", folder, "--probe", "--json").stdout)
    assert printed["probes"] == found["probes"]


def test_damaged_checkpoints_are_warned_of_in_python(
    run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run("blindfold")
    found = probe_run(folder)
    monkeypatch.setattr(probes, "probe_run", lambda *_: found | {"damaged_checkpoints": ["best.pt: damaged"]})
    cdn_tune.open_run(folder).probe()
    assert "best.pt: damaged" in caplog.text


def test_names() -> None:
    assert list(TITLES) == list(PROBES)
    assert set(VERDICTS) == {"kept", "lost", "unclear", "none"}
