"""Published weights become a run that can be evaluated; what does not fit is named."""

import contextlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.errors import CheckpointError, ConfigError, RunError
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.published import published_names, published_settings
from cdn_tune.training.import_weights import import_weights, read_state
from cdn_tune.training.runs.checkpoint import BEST, build_model, load_checkpoint

Tiny = Callable[..., Experiment]
PUBLISHED_WIDTH = {"model.attention_size": 256}


def published_state(model: CDN) -> dict[str, torch.Tensor]:
    """The model's weights under the published names and shapes."""
    state = {}
    own = model.state_dict()
    kernel = model.config.map.kernel_sizes
    for ours, theirs in published_names(model.config):
        value = own[ours]
        if theirs in ("frame_layer.vis_conv.weight", "frame_layer.vis_out_conv.weight"):
            value = value[..., None]
        elif theirs.startswith("map_layer.convs.") and theirs.count(".") == 3:
            layer = int(theirs.split(".")[2])
            dynamic = model.config.map.dynamic[layer]
            if theirs.endswith("weight"):
                value = value.unflatten(0, (kernel[layer], kernel[layer])).permute(2, 3, 4, 0, 1)
                value = value.flatten(1) if dynamic else value.reshape(-1, *value.shape[-3:])
            elif not dynamic:
                value = value.reshape(-1)
        state[theirs] = value.clone()
    return state


@pytest.mark.parametrize("form", ["bare", "under model", "wrapped"])
def test_imported_weights_are_the_model(tiny: Tiny, tmp_path: Path, form: str) -> None:
    experiment = tiny(**PUBLISHED_WIDTH)
    model = build_model(experiment).eval()
    state = published_state(model)
    if form == "wrapped":
        state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": state} if form == "under model" else state, tmp_path / "best.pkl")
    import_weights(tmp_path / "best.pkl", experiment, tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / BEST)
    for name, value in model.state_dict().items():
        assert torch.equal(checkpoint.model.state_dict()[name], value), name
    result = evaluate_run(tmp_path / "run")
    assert result["chosen_by"]["value"] is None
    assert result["planted"] is True


def test_what_does_not_fit_is_named(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**PUBLISHED_WIDTH)
    state = published_state(build_model(experiment))
    del state["pred_layer.bias"]
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(
        CheckpointError, match=r"best\.pt: .* lack pred_layer\.bias; name the --experiment .* model\.name=cdn"
    ):
        import_weights(tmp_path / "best.pt", experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_variant_that_was_never_published_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"model\.clip_pool=mean"):
        published_settings((mean := tiny(**{"model.clip_pool": "mean"})).model, mean.data)


@pytest.mark.parametrize("family", ["tan", "mmn"])
def test_other_families_are_imported_with_the_published_switches(family: str, tiny: Tiny, tmp_path: Path) -> None:
    small = {"model.clips": 8, "model.hidden": 8, "model.map.layers": 2, "model.map.kernel_size": 3}
    own = {"tan": {"model.query.hidden": 8}, "mmn": {"model.joint": 8}}[family]
    experiment = tiny(**{"model.name": family, **small, **own})
    names = importlib.import_module(f"cdn_tune.model.{family}.published").published_names(experiment.model)
    state = build_model(experiment).state_dict()
    theirs = {theirs: state[ours] for ours, theirs in names}
    assert len(theirs) == len(state)
    if family == "mmn":
        theirs["text_encoder.bert.embeddings.weight"] = torch.zeros(3)  # token features stand for it
    torch.save(theirs, tmp_path / "best.pth")
    (tmp_path / "experiment.yaml").write_text(dump(experiment.plain()))
    command = ["import-weights", "best.pth", "--experiment", "experiment.yaml", "--out", "run", "--family"]
    with contextlib.chdir(tmp_path):
        wrong = CliRunner().invoke(app, [*command, "cdn"])
        assert wrong.exit_code == 2
        assert f"is of model.name={family}" in " ".join(wrong.output.split())
        done = CliRunner().invoke(app, [*command, family])
    assert done.exit_code == 0, done.output
    checkpoint = load_checkpoint(tmp_path / "run" / BEST)
    assert checkpoint.experiment.model.overlaps == "rounded"
    for name, value in state.items():
        assert torch.equal(checkpoint.model.state_dict()[name], value), name


@pytest.mark.parametrize("resumes", [True, False])
def test_snag_is_imported_with_or_without_its_normaliser(resumes: bool, tiny: Tiny, tmp_path: Path) -> None:
    small = {"model.text": {"hidden": 8, "layers": 1}, "model.video": {"hidden": 8, "levels": 3, "length": 32}}
    switches = {"data.sequence.length": 32, "loss.normaliser_resumes": resumes}
    experiment = tiny(**{"model.name": "snag", **small, **switches})
    model = build_model(experiment)
    names = importlib.import_module("cdn_tune.model.snag.published").published_names(model)
    torch.save({theirs: model.state_dict()[ours] for ours, theirs in names}, tmp_path / "best.pth")
    imported = import_weights(tmp_path / "best.pth", experiment, tmp_path / "run")
    assert imported.data.tokenizer == "words"  # it splits off punctuation
    found = load_checkpoint(tmp_path / "run" / BEST).model.state_dict()
    assert ("normaliser" in found) == resumes
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch pwned",))


def test_files_are_opened_without_running_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pkl")
    torch.save({"model": [1, 2]}, "list.pkl")
    for name, told in (("evil.pkl", "plain tensors"), ("list.pkl", "holds no state"), ("none.pkl", "no such file")):
        with pytest.raises(CheckpointError, match=told):
            read_state(Path(name))
    assert not Path("pwned").exists()


def test_another_checkpoint_is_not_written_over_the_first(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**PUBLISHED_WIDTH)
    state = published_state(build_model(experiment))
    torch.save(state, tmp_path / "one.pt")
    torch.save({**state, "pred_layer.bias": torch.ones(1)}, tmp_path / "two.pt")
    imported = import_weights(tmp_path / "one.pt", experiment, tmp_path / "run")
    assert (imported.data.tokenizer, imported.data.resampling) == ("legacy", "legacy")
    before = (tmp_path / "run" / BEST).read_bytes()
    import_weights(tmp_path / "one.pt", experiment, tmp_path / "run")
    with pytest.raises(RunError, match="holds another checkpoint"):
        import_weights(tmp_path / "two.pt", experiment, tmp_path / "run")
    assert (tmp_path / "run" / BEST).read_bytes() == before


def test_what_is_no_state_is_told(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match=r"numbers\.pt: holds no state"):
        read_state(tmp_path / "numbers.pt")
