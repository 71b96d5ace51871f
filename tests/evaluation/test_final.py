"""The final word: the best checkpoint by val, measured on test, once, beside what needs no model."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.data.dataset import load_split
from cdn_tune.data.planted import plant
from cdn_tune.data.videos.making import Making, write_making
from cdn_tune.distributed.launch import run_tasks
from cdn_tune.errors import CheckpointError, ConfigError, DataError, RunError, TrainingError
from cdn_tune.evaluation import evaluate as final
from cdn_tune.evaluation.choose_checkpoint import choose_best
from cdn_tune.evaluation.compare import NEEDED, compare_many, compare_runs
from cdn_tune.evaluation.evaluate import cautions, evaluate_run, record_test_access, remarks
from cdn_tune.evaluation.export import export_run
from cdn_tune.evaluation.queries import answers_of, read_query_results
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.scoring import Workers
from cdn_tune.moments.metrics import measure
from cdn_tune.report.answers import recorded_predictions
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.object_store.working_copy import working_copy
from cdn_tune.training.runs.checkpoint import BEST, build_model, load_checkpoint, save_checkpoint
from cdn_tune.training.runs.run_folder import claim, locked, read_manifest, record_in_manifest

Tiny = Callable[..., Experiment]


def test_evaluation_of_a_train_run(trained: Path) -> None:
    result = evaluate_run(trained)
    assert json.loads((trained / "evaluation.json").read_text()) == result
    assert (result["schema"], result["split"], result["dataset"], result["planted"]) == (
        2,
        "test",
        "charades_sta",
        True,
    )
    checkpoint = load_checkpoint(trained / BEST)
    test = load_split(checkpoint.experiment.data, "test")
    assert result["queries"] == len(test)
    alone = evaluate_split(checkpoint.model, test, checkpoint.experiment.eval).metrics
    assert {name: result["metrics"][name] for name in alone} == alone  # as on val: bit for bit
    discounted = {f"dR{n}@{iou}" for n in (1, 5) for iou in (0.3, 0.5)}
    assert set(result["metrics"]) - set(alone) == {*discounted, "mAP@0.3", "mAP@0.5", "mAP"}
    assert set(result["baselines"]) == {"best_constant", "query_blind", "random"}
    assert 0 <= result["baselines"]["best_constant"]["metrics"]["R1@0.5"] <= 1
    assert result["chosen_by"]["split"] == "val"
    assert result["looks"] == 1
    assert evaluate_run(trained)["looks"] == 2


def test_a_run_on_an_object_store_is_evaluated_on_one_machine() -> None:
    run = working_copy("s3://bucket/run?endpoint_override=127.0.0.1:9&region=eu-west-1&scheme=http")
    with pytest.raises(ConfigError, match="--address ADDR: a run on an object store is evaluated on one machine"):
        evaluate_run(run, request=Request(workers=Workers(2, "auto")))


def test_a_result_chosen_on_test_is_told_as_such(tmp_path: Path) -> None:
    result = {"protocol": "published", "damaged_checkpoints": [], "data_changed": [], "looks": 1, "models": ["a"]}
    result |= {"checkpoint": "a", "epoch": 1}
    assert list(remarks(tmp_path, result)) == []  # it was said before
    assert list(cautions(Request(protocol="published"))) == [
        "protocol published: the epoch is chosen on the test split; its numbers are no estimate of new queries"
    ]
    assert list(cautions(Request())) == []


def test_metrics_do_not_depend_on_the_batch_size(trained: Path) -> None:
    first = evaluate_run(trained)["metrics"]
    assert evaluate_run(trained, {"eval.batch_size": 3})["metrics"] == first


def test_moved_data_are_named_by_an_override(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="elsewhere"):
        evaluate_run(trained, {"data.root": str(tmp_path / "elsewhere")})
    assert not (trained / "evaluation.json").exists()


def test_overrides_that_change_the_model_are_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden=9: after training only data\.root"):
        evaluate_run(trained, {"model.hidden": 9})


def test_best_by_val_and_damaged_gives_way(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    with locked(tmp_path):
        claim(tmp_path, {"kind": "search"}, {})
    state = build_model(experiment).state_dict()
    for number, value in enumerate([0.2, 0.9, 0.5]):
        path = tmp_path / "best" / f"trial-{number:04d}" / "checkpoint.pt"
        save_checkpoint(path, experiment, {"model": state, "epoch": 1, "val": {"R1@0.5": value}, "planted": True})
    assert choose_best(tmp_path).checkpoint.path.parent.name == "trial-0001"
    (tmp_path / "best/trial-0001/checkpoint.pt").write_bytes(b"x")
    choice = choose_best(tmp_path)
    assert choice.checkpoint.path.parent.name == "trial-0002"
    assert "trial-0001" in choice.damaged[0]
    for number in (0, 2):
        (tmp_path / f"best/trial-{number:04d}/checkpoint.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        choose_best(tmp_path)


def test_run_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        choose_best(tmp_path / "x")
    with locked(tmp_path):
        claim(tmp_path, {"kind": "search"}, {})
    with pytest.raises(RunError, match="no checkpoint of a finished epoch"):
        choose_best(tmp_path)


@pytest.mark.parametrize("key", ["eval.metric", "eval.nms_threshold", "data.frames", "data.val_fraction"])
def test_what_was_chosen_on_val_stays(trained: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="after training only"):
        evaluate_run(trained, {key: 0.1})


def test_every_look_is_kept(trained: Path) -> None:
    first = evaluate_run(trained)
    evaluate_run(trained, {"eval.batch_size": 9})
    assert json.loads((trained / "evaluation-look-1.json").read_text()) == first
    assert json.loads((trained / "evaluation.json").read_text())["looks"] == 2


def test_a_kill_while_files_are_written_loses_no_evaluation(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate_run(trained, None, Request(resamples=20))
    before = (trained / "predictions.jsonl").read_bytes()
    left = trained / f".looks.jsonl.{2**22 + 1}.tmp"
    left.touch()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(final, "write_together", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                evaluate_run(trained, None, Request(resamples=20))
    assert json.loads((trained / "evaluation.json").read_text()) == first
    assert (trained / "predictions.jsonl").read_bytes() == before
    assert not left.exists()
    assert evaluate_run(trained, None, Request(resamples=20))["looks"] == 4
    names = sorted(path.name for path in trained.glob("*look-*"))
    assert names == ["evaluation-look-1.json", "predictions-look-1.jsonl"]
    assert json.loads((trained / "evaluation-look-1.json").read_text()) == first
    assert (trained / "predictions-look-1.jsonl").read_bytes() == before


def test_predictions_of_another_evaluation_are_refused(trained: Path) -> None:
    """As after a kill between the names of the two files; without a digest, of an earlier version, they are taken."""
    evaluation = evaluate_run(trained, None, Request(resamples=20))
    assert compare_runs(trained, trained, 20)
    path = trained / "predictions.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rest, first]))
    with pytest.raises(DataError, match=r"predictions\.jsonl: is of another evaluation than evaluation\.json"):
        compare_runs(trained, trained, 20)
    with pytest.raises(DataError, match="is of another evaluation"):
        recorded_predictions(path, evaluation)
    del evaluation["predictions_sha256"]
    assert recorded_predictions(path, evaluation).queries


def test_a_half_line_is_no_look(trained: Path) -> None:
    with locked(trained):
        assert record_test_access(trained, {}) == 1
        with (trained / "looks.jsonl").open("a") as file:
            file.write('{"look": 2, "ope')
        assert record_test_access(trained, {}) == 2
    lines = (trained / "looks.jsonl").read_text().splitlines()
    assert [json.loads(line)["look"] for line in lines] == [1, 2]


@pytest.mark.parametrize("content", [b'{"look": 1}\nx\n', b"[]\n", b"\xff\n", b"[" * 100_000 + b"\n", b"7\n"])
def test_damaged_looks_are_told_before_anything_is_done(trained: Path, content: bytes) -> None:
    (trained / "looks.jsonl").write_bytes(content)
    with pytest.raises(RunError, match=r"looks\.jsonl(:\d)?: (is no look at the test split; correct|cannot be read)"):
        evaluate_run(trained, None, Request(seeds=1, resamples=20))
    assert (trained / "looks.jsonl").read_bytes() == content
    assert not (trained / "seeds").exists()


def test_weights_that_are_not_finite_are_refused_before_a_look(trained: Path, tmp_path: Path) -> None:
    best = load_checkpoint(trained / BEST)
    state = {name: value * float("nan") for name, value in best.model.state_dict().items()}
    content = {"model": state, "epoch": 1, "val": best.val, "planted": True}
    save_checkpoint(trained / BEST, best.experiment, content)
    for refused in (lambda: evaluate_run(trained), lambda: export_run(trained, tmp_path / "out")):
        with pytest.raises(CheckpointError, match="are not finite"):
            refused()
    assert not (trained / "looks.jsonl").exists()
    assert not (tmp_path / "out").exists()


def test_other_data_are_refused_unless_asked_for(trained: Path, tmp_path: Path) -> None:
    plant(tmp_path / "other", videos=24, feature_size=16, word_size=12, frame_rate=2.0, seed=2)
    overrides = {"data.root": str(tmp_path / "other")}
    with pytest.raises(RunError, match=r"data have changed since the run .*charades_sta_test\.txt.*--other-data"):
        evaluate_run(trained, overrides)
    assert not list(trained.glob("evaluation*"))
    assert not (trained / "looks.jsonl").exists()
    result = evaluate_run(trained, overrides, Request(other_data=True, resamples=20))
    assert "charades_sta_test.txt" in result["data_changed"]
    assert "vgg_rgb_features.hdf5" in result["data_changed"]


def test_features_of_another_making_are_refused_even_as_other_data(
    trained: Path, planted: Path, tmp_path: Path
) -> None:
    making = Making("efficientnet_lite0", "0123456789abcdef", 2.0, 1, 0.0, 224, {})
    record_in_manifest(trained, "data", read_manifest(trained)["data"] | {"making": making.plain()})
    shutil.copytree(planted, tmp_path / "other")
    overrides, request = {"data.root": str(tmp_path / "other")}, Request(other_data=True, resamples=20)
    with h5py.File(tmp_path / "other" / "vgg_rgb_features.hdf5", "r+") as file:
        write_making(file, dataclasses.replace(making, fps=4.0))
    with pytest.raises(RunError, match=r"features that were made otherwise than these \(fps 2.0 is 4.0 here\)"):
        evaluate_run(trained, overrides, request)
    assert not (trained / "looks.jsonl").exists()
    with h5py.File(tmp_path / "other" / "vgg_rgb_features.hdf5", "r+") as file:
        write_making(file, dataclasses.replace(making, versions={"av": "19"}))
    assert evaluate_run(trained, overrides, request)["looks"] == 1


@pytest.mark.parametrize("fault", ["missing", "nan"])
def test_faulty_test_features_are_found_before_a_look_is_recorded(
    trained: Path, planted: Path, tmp_path: Path, fault: str
) -> None:
    shutil.copytree(planted, tmp_path / "faulty")
    video = load_split(load_checkpoint(trained / BEST).experiment.data, "test").annotations[0].video
    with h5py.File(tmp_path / "faulty" / "vgg_rgb_features.hdf5", "r+") as file:
        if fault == "missing":
            del file[video]
        else:
            file[video][0, 0] = np.nan
    with pytest.raises(DataError, match=video):
        evaluate_run(trained, {"data.root": str(tmp_path / "faulty")}, Request(other_data=True, resamples=20))
    assert not (trained / "looks.jsonl").exists()


def test_moved_data_are_the_same_data(trained: Path, planted: Path, tmp_path: Path) -> None:
    shutil.copytree(planted, tmp_path / "moved")
    result = evaluate_run(trained, {"data.root": str(tmp_path / "moved")})
    assert result["data_changed"] == []


def test_predictions_give_the_metrics_again(trained: Path) -> None:
    result = evaluate_run(trained, None, Request(resamples=50))
    found = read_query_results(trained / "predictions.jsonl")
    assert len(found) == result["queries"]
    answers = answers_of([each.moments for each in found], [each.annotation for each in found])
    again = measure(answers, tuple(result["metrics"]))
    assert again.means == pytest.approx(result["metrics"], abs=1e-9)
    assert sum(each.iou for each in found) / len(found) == pytest.approx(result["metrics"]["mIoU"])
    for each in found:
        assert [score for _, _, score in each.moments] == sorted((m[2] for m in each.moments), reverse=True)


def test_every_number_has_its_interval(trained: Path) -> None:
    result = evaluate_run(trained, None, Request(resamples=200))
    rows = [result, *result["models"], *result["baselines"].values()]
    rows += [group for groups in result["groups"].values() for group in groups]
    for row in rows:
        assert set(row["intervals"]) == set(row["metrics"])
        for name, ends in row["intervals"].items():
            assert ends[0] - 1e-9 <= row["metrics"][name] <= ends[1] + 1e-9
    gain, blind = result["advantage"], result["baselines"]["query_blind"]["metrics"]
    for name, difference in gain["difference"].items():
        assert difference == pytest.approx(result["metrics"][name] - blind[name])
        assert 0 < gain["p_values"][name] <= 1
    for groups in result["groups"].values():
        assert sum(group["queries"] for group in groups) == result["queries"]
    assert result["published"] == []  # planted


def test_seeds_are_trained_once_and_averaged(
    trained: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(seeds=2, resamples=50)
    first = evaluate_run(trained, None, request)
    runs = first["seeds"]["runs"]
    assert [each["seed"] for each in runs] == [1, 2]
    assert runs[0]["metrics"] != runs[1]["metrics"]
    for name, value in first["metrics"].items():
        mean = sum(each["metrics"][name] for each in runs) / 2
        assert value == pytest.approx(mean)
        assert first["std"][name] == pytest.approx(abs(runs[0]["metrics"][name] - mean) * 2**0.5)
    assert first["reported"] == "mean over 2 seeds"
    assert first["models"][0]["checkpoint"] == "checkpoints/best.pt"
    assert len(read_query_results(trained / runs[1]["predictions"])) == first["queries"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("cdn_tune.evaluation.retrain.train", refuse)
    (tmp_path / "link").symlink_to(planted)
    again = evaluate_run(trained, {"data.root": str(tmp_path / "link")}, request)  # the same data, spelled otherwise
    assert again["metrics"] == first["metrics"]
    with pytest.raises(AssertionError, match="trained again"):
        evaluate_run(trained, None, Request(seeds=3, resamples=50))
    assert json.loads((trained / "looks.jsonl").read_text().splitlines()[-1])["look"] == 2


def test_seeds_that_a_search_has_chosen_by_are_not_trained_again(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = dataclasses.replace(choose_best(trained), confirmed={"seeds": [1, 3, None]})
    monkeypatch.setattr(final, "choose_best", lambda *_: choice)
    runs = evaluate_run(trained, None, Request(seeds=2, resamples=20))["seeds"]["runs"]
    assert [each["seed"] for each in runs] == [2, 4]


def test_a_seed_that_was_stopped_goes_on(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdn_tune.evaluation import retrain

    def stop(*arguments: object, **options: object) -> None:
        real(*arguments, **{**options, "stop": lambda: True})  # type: ignore[arg-type]

    whole = evaluate_run(trained, None, Request(seeds=1, resamples=20))
    shutil.rmtree(trained / "seeds")
    real = retrain.train
    monkeypatch.setattr(retrain, "train", stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(trained, None, Request(seeds=1, resamples=20))
    monkeypatch.setattr(retrain, "train", real)
    again = evaluate_run(trained, None, Request(seeds=1, resamples=20))
    assert again["metrics"] == whole["metrics"]
    assert again["looks"] == 2  # what was interrupted never opened test


def test_seeds_folder_of_another_trial_is_not_touched(trained: Path, tmp_path: Path) -> None:
    evaluate_run(trained, None, Request(seeds=1, resamples=20))
    plant(tmp_path / "other", videos=24, feature_size=16, word_size=12, frame_rate=2.0, seed=2)
    overrides = {"data.root": str(tmp_path / "other")}
    with pytest.raises(RunError, match=r"seeds/1: holds another trial \(it is of other data: "):
        evaluate_run(trained, overrides, Request(seeds=1, resamples=20, other_data=True))
    path = trained / "seeds/1/experiment.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    with pytest.raises(RunError, match=r"seeds/1: holds another trial \(train\.epochs is 3 there, 2 here\)"):
        evaluate_run(trained, None, Request(seeds=1, resamples=20))


def test_train_and_val_together_for_the_winners_epochs(trained: Path) -> None:
    path = trained / BEST
    best = load_checkpoint(path)
    state = best.model.state_dict()
    save_checkpoint(path, best.experiment, {"model": state, "epoch": 1, "val": best.val, "planted": True})
    result = evaluate_run(trained, None, Request(seeds=1, train_on="train+val", resamples=20))
    (row,) = result["seeds"]["runs"]
    assert (row["checkpoint"], result["seeds"]["trained_on"]) == ("seeds/1-train+val/checkpoint.pt", "train+val")
    kept = load_checkpoint(trained / row["checkpoint"])
    assert (kept.epoch, kept.val) == (1, {})
    assert result["seeds"]["epoch_chosen_on"] == "val"
    assert not (trained / "seeds/1-train+val/checkpoints").exists()
    assert result["reported"] == "one seed"
    assert result["std"] is None


def test_the_published_protocol_is_labelled_and_apart(trained: Path) -> None:
    honest = evaluate_run(trained, None, Request(resamples=20))
    result = evaluate_run(trained, None, Request(protocol="published", resamples=20))
    assert result["protocol"] == "published"
    assert "test split itself" in result["label"]
    assert result["chosen_by"]["split"] == "test"
    assert result["seeds"]["trained_on"] == "train+val"  # Charades-STA has no val
    assert result["models"] == []
    assert result["looks"] == 2
    assert json.loads((trained / "evaluation.json").read_text()) == honest
    assert json.loads((trained / "evaluation-published.json").read_text()) == result
    assert len(read_query_results(trained / "predictions-published.jsonl")) == result["queries"]
    kept = load_checkpoint(trained / "published/0/checkpoints/best.pt")
    metric = kept.experiment.eval.metric
    assert kept.val[metric] == pytest.approx(result["metrics"][metric])  # it was chosen by what it is measured with


def test_the_nms_threshold_is_chosen_on_val(trained: Path) -> None:
    result = evaluate_run(trained, None, Request(choose_nms=True, resamples=20))
    nms = result["nms"]
    assert (nms["chosen_on"], nms["metric"]) == ("val", "R5@0.5")
    values = {each["threshold"]: each["value"] for each in nms["tried"]}
    best = load_checkpoint(trained / BEST)
    val = load_split(best.experiment.data, "val")
    for threshold in (0.3, 0.5, 0.8):
        config = best.experiment.eval.model_copy(update={"nms_threshold": threshold})
        assert values[threshold] == pytest.approx(evaluate_split(best.model, val, config).metrics["R5@0.5"])
    assert values[nms["threshold"]] == max(values.values())
    config = best.experiment.eval.model_copy(update={"nms_threshold": nms["threshold"]})
    test = load_split(best.experiment.data, "test")
    assert result["metrics"]["R5@0.5"] == pytest.approx(evaluate_split(best.model, test, config).metrics["R5@0.5"])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_several_workers_find_the_same(trained: Path) -> None:
    """Shares of the queries, seeds, NMS threshold and score maps, from Ray tasks: bit for bit the same."""
    overrides = {"eval.batch_size": 7}
    request = Request(seeds=2, choose_nms=True, score_maps=True, resamples=20)
    alone = evaluate_run(trained, overrides, request)
    maps, predictions = (trained / "score_maps.hdf5").read_bytes(), (trained / "predictions.jsonl").read_bytes()
    shutil.rmtree(trained / "seeds")
    together = evaluate_run(trained, overrides, dataclasses.replace(request, workers=Workers(2)))
    changing = ("created", "looks")
    assert {k: v for k, v in together.items() if k not in changing} == {
        k: v for k, v in alone.items() if k not in changing
    }
    assert (trained / "predictions.jsonl").read_bytes() == predictions
    with h5py.File(io.BytesIO(maps)) as one, h5py.File(trained / "score_maps.hdf5") as two:
        np.testing.assert_array_equal(one["scores"][:], two["scores"][:])
    assert not list(trained.glob(".score_maps*"))
    with pytest.raises(RunError, match="no such file"):
        list(run_tasks(_fail, [("a",), ("b",)], 2))


def _fail(name: str) -> None:
    raise RunError(f"{name}: no such file")


def test_score_maps_hold_the_predictions(trained: Path) -> None:
    evaluate_run(trained, None, Request(score_maps=True, resamples=20))
    found = read_query_results(trained / "predictions.jsonl")
    with h5py.File(trained / "score_maps.hdf5") as file:
        assert [name.decode() for name in file["id"][:]] == [each.id for each in found]
        for number, each in enumerate(found):
            scores, duration = file["scores"][number], file["duration"][number]
            assert np.nanmax(scores) == pytest.approx(each.moments[0][2])
            first, last = np.unravel_index(np.nanargmax(scores), scores.shape)
            size = duration / len(scores)
            assert each.moments[0][:2] == pytest.approx((first * size, (last + 1) * size), abs=1e-4)
            assert np.isnan(scores[np.tril_indices(len(scores), -1)]).all()


def test_top_checkpoint_and_trials(tiny: Tiny, trained: Path) -> None:
    """The best K of a search, one opening of test."""
    run = trained.parent / "search"
    best = load_checkpoint(trained / BEST)
    with locked(run):
        claim(run, {"kind": "search"}, {})
    for number, value in enumerate([0.2, 0.9, 0.5]):
        path = run / "best" / f"trial-{number:04d}" / "checkpoint.pt"
        content = {"model": best.model.state_dict(), "epoch": 1, "val": {"R1@0.5": value}, "planted": True}
        save_checkpoint(path, best.experiment, content)
    two = evaluate_run(run, None, Request(top=2, resamples=20))
    assert [model["checkpoint"][5:15] for model in two["models"]] == ["trial-0001", "trial-0002"]
    assert two["looks"] == 1
    assert {model["parameters"] for model in two["models"]} == {sum(each.numel() for each in best.model.parameters())}
    front = evaluate_run(run, None, Request(trials=(2, 0, 7), resamples=20))
    assert [model["checkpoint"][5:15] for model in front["models"]] == ["trial-0002", "trial-0000"]
    assert "trial-0007: its checkpoint was not kept" in front["damaged_checkpoints"][0]
    named = evaluate_run(run, None, Request(checkpoint=trained / BEST, resamples=20))
    assert named["checkpoint"] == str(trained / BEST)
    with pytest.raises(RunError, match="keeps no checkpoint of the Pareto front"):
        choose_best(run, trials=[9])
    with pytest.raises(CheckpointError, match="--checkpoint /nowhere: no such file"):
        choose_best(run, file=Path("/nowhere"))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(protocol="published", choose_nms=True), "--choose-nms does not go with --protocol published"),
        (Request(protocol="published", formats=("charades_sta",)), "--export-format does not go with"),
        (Request(train_on="train+val"), "nothing is trained again without --seeds"),
        (Request(top=2, trials=(1,)), "give one of them"),
    ],
)
def test_what_does_not_go_together(trained: Path, request_: Request, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluate_run(trained, None, request_)
    assert not (trained / "looks.jsonl").exists()


def test_a_look_is_recorded_before_test_is_opened(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise TrainingError("the power is gone")

    monkeypatch.setattr(final, "retrieve", crash)
    with pytest.raises(TrainingError):
        evaluate_run(trained)
    monkeypatch.undo()
    assert evaluate_run(trained, None, Request(resamples=20))["looks"] == 2


def test_features_of_another_size_are_one_line(trained: Path, planted: Path, tmp_path: Path) -> None:
    shutil.copytree(planted, tmp_path / "wide")
    path = tmp_path / "wide/vgg_rgb_features.hdf5"
    with h5py.File(path, "r+") as file:
        for video in list(file):
            frames = file[video][:]
            del file[video]
            file[video] = np.concatenate([frames, frames], axis=1)
    with pytest.raises(DataError, match="32") as caught:
        evaluate_run(trained, {"data.root": str(tmp_path / "wide")}, Request(other_data=True))
    assert "\n" not in str(caught.value)
    assert not list(trained.glob("evaluation*"))
    assert not (trained / "looks.jsonl").exists()


WRONG_FACTS: list[tuple[str, object]] = [
    ("schema", "2"),
    ("recalls", ["1"]),
    ("recalls", [10**9]),
    ("ious", [2]),
    ("seeds", []),
    ("seeds", {"runs": [{"predictions": 1}]}),
    ("looks", True),
]


def test_two_runs_compare_on_the_same_queries(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    with pytest.raises(RunError, match="is not evaluated yet"):
        compare_runs(trained, other)
    evaluate_run(trained, None, Request(resamples=20))
    evaluate_run(other, None, Request(seeds=1, resamples=20))
    same = compare_runs(trained, trained, 100)
    assert all(row["difference"] == 0 and row["p_value"] == 1 for row in same["metrics"])
    found, back = compare_runs(trained, other, 300), compare_runs(other, trained, 300)
    facts = [json.loads((run / "evaluation.json").read_text()) for run in (trained, other)]
    for row, reverse in zip(found["metrics"], back["metrics"], strict=True):
        assert row["first"]["value"] == pytest.approx(facts[0]["metrics"][row["name"]], abs=1e-9)
        assert row["second"]["value"] == pytest.approx(facts[1]["metrics"][row["name"]], abs=1e-9)
        assert row["difference"] == pytest.approx(-reverse["difference"])
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    for name, value in [*((name, None) for name in NEEDED if name != "seeds"), *WRONG_FACTS]:
        (other / "evaluation.json").write_text(json.dumps({**facts[1], name: value}))
        with pytest.raises(RunError, match=rf"evaluation\.json: damaged \('{name}' is missing or of another type\)"):
            compare_runs(trained, other)
    for text in ("{", "[]", "[" * 100_000, '{"schema": 1}'):
        (other / "evaluation.json").write_text(text)
        with pytest.raises(RunError, match=r"evaluation\.json: .*; evaluate the run again"):
            compare_runs(trained, other)
    (other / "evaluation.json").write_text(json.dumps(facts[1]))
    del facts[0]["predictions_sha256"]
    (trained / "evaluation.json").write_text(json.dumps(facts[0]))
    lines = (trained / "predictions.jsonl").read_text().splitlines(keepends=True)
    (trained / "predictions.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(RunError, match="only runs measured on the same queries"):
        compare_runs(trained, other)
    (trained / "predictions.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(RunError, match="only runs measured on the same queries"):
        compare_runs(trained, other)


def test_several_runs_compare_in_pairs(trained: Path, tmp_path: Path) -> None:
    runs = [trained, tmp_path / "second", tmp_path / "third"]
    for run in runs[1:]:
        shutil.copytree(trained, run)
    evaluate_run(trained, None, Request(resamples=20))
    evaluate_run(runs[1], None, Request(seeds=1, resamples=20))
    with pytest.raises(RunError, match="third: is not evaluated yet"):
        compare_many(runs, 20)
    evaluate_run(runs[2], None, Request(resamples=20))
    found = compare_many(runs, 300)
    assert [run["run"] for run in found["runs"]] == list(map(str, runs))
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    alone = compare_runs(trained, runs[1], 300)
    for at, row in enumerate(alone["metrics"]):
        mine, pairs = found["runs"][0]["metrics"][at], [pair["metrics"][at] for pair in found["pairs"]]
        assert {"name": row["name"], **row["first"]} == mine
        assert {key: row[key] for key in ("name", "difference", "interval", "p_value")}.items() <= pairs[0].items()
        raw = sorted(pair["p_value"] for pair in pairs)
        assert min(pair["p_holm"] for pair in pairs) == pytest.approx(min(1, 3 * raw[0]))
        assert all(pair["p_value"] <= pair["p_holm"] <= 1 for pair in pairs)
        assert (pairs[1]["difference"], pairs[1]["p_holm"]) == (0, 1)  # of equal runs
    result = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert result.exit_code == 0, result.output
    for text in ("B - C", "p (Holm)", "corrected for 3 pairs", "C: ", "planted data"):
        assert text in result.output
    assert (
        json.loads(CliRunner().invoke(app, ["compare", *map(str, runs), "--json"]).stdout)["queries"]
        == found["queries"]
    )
    facts = json.loads((runs[2] / "evaluation.json").read_text())
    (runs[2] / "evaluation.json").write_text(json.dumps({**facts, "dataset": "tacos"}))
    refused = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert "dataset is charades_sta there and tacos here" in refused.output
    few = CliRunner().invoke(app, ["compare", str(trained)])
    assert few.exit_code == 2
    assert "name 2 to 26 runs" in few.output
