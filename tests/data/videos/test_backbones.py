"""Backbones of timm and torchvision, with weights from a file: their features are those of the network itself."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdn_tune.data.videos.backbones import open_backbone
from cdn_tune.errors import ConfigError, DataError

pytestmark = pytest.mark.slow


CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Yields timm and torchvision, installed for these tests alone where they are not.

    Declares the operators that a torchvision for another build of torch does not bring. Where it cannot be imported it
    disturbs transformers, so it is no part of what other tests run with.
    """
    folder = str(tmp_path_factory.mktemp("libraries"))
    if not all(map(importlib.util.find_spec, ("timm", "torchvision"))):
        install = ("install", "--quiet", "--no-deps", "--target", folder, "-c", str(CONSTRAINTS), "timm", "torchvision")
        if subprocess.run([sys.executable, "-m", "pip", *install], check=False, timeout=250).returncode:
            pytest.skip("timm and torchvision are not installed, and cannot be")
    sys.path.append(folder)
    definitions = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            definitions.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    import torchvision

    yield timm, torchvision
    sys.path.remove(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]


def test_an_image_model_of_timm(libraries: tuple[Any, Any], tmp_path: Path) -> None:
    timm, _ = libraries
    network = timm.create_model("resnet10t", pretrained=False).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "w.pth"
    )
    backbone = open_backbone("timm/resnet10t", tmp_path / "w.pth", "cpu")
    assert backbone.window == 1
    pixels = np.random.default_rng(0).integers(0, 255, (backbone.shorter, backbone.shorter + 40, 3), dtype=np.uint8)
    seen = backbone.prepare(pixels)
    assert seen.shape == (backbone.size, backbone.size, 3)
    settings = timm.data.resolve_model_data_config(network)
    image = (torch.from_numpy(seen).permute(2, 0, 1).float() / 255 - torch.tensor(settings["mean"]).view(3, 1, 1)) / (
        torch.tensor(settings["std"]).view(3, 1, 1)
    )
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(image[None]), pre_logits=True)
    np.testing.assert_allclose(backbone.features([[seen]]), expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="weights of another network than timm/resnet18"):
        open_backbone("timm/resnet18", tmp_path / "w.pth", "cpu")
    with pytest.raises(ConfigError, match="timm has no such model"):
        open_backbone("timm/resnet1", None, "cpu")


def test_a_frame_that_is_squashed_is_larger_than_its_middle_that_is_seen(
    libraries: tuple[Any, Any], tmp_path: Path
) -> None:
    timm, _ = libraries
    name = "tf_efficientnetv2_b3.in21k_ft_in1k"
    settings = timm.get_pretrained_cfg(name).to_dict()
    assert settings["crop_mode"] == "squash"
    torch.save(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "w.pth")
    backbone = open_backbone(f"timm/{name}", tmp_path / "w.pth", "cpu")
    size, scaled = settings["input_size"][1], int(settings["input_size"][1] / settings["crop_pct"])
    assert backbone.size < backbone.shorter == scaled
    pixels = np.zeros((scaled, 2 * scaled, 3), np.uint8)
    margin = (scaled - size) // 2
    pixels[:, : 2 * margin - 12] = 255  # outside of what is seen
    seen = backbone.prepare(pixels)
    assert seen.shape == (size, size, 3)
    assert seen.max() < 20
    pixels[:, : 2 * margin + 12] = 255
    assert backbone.prepare(pixels).max() > 200


def test_a_video_model_of_torchvision(libraries: tuple[Any, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    _, torchvision = libraries
    network = torchvision.models.video.r3d_18(weights=None).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    backbone = open_backbone("torchvision/r3d_18", tmp_path / "w.safetensors", "cpu", 4)
    assert (backbone.window, backbone.size, backbone.stride) == (4, 112, 1 / 15)
    generator = np.random.default_rng(0)
    window = [backbone.prepare(generator.integers(0, 255, (128, 228, 3), dtype=np.uint8)) for _ in range(4)]
    assert window[0].shape == (112, 112, 3)
    preset = torchvision.models.video.R3D_18_Weights.DEFAULT.transforms()
    images = torch.from_numpy(np.stack(window)).permute(3, 0, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in (preset.mean, preset.std))
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        expected = network(((images - mean) / std)[None])
    np.testing.assert_allclose(backbone.features([window]), expected.numpy(), rtol=1e-4, atol=1e-5)
    for name, clip in {"s3d": (128, 1 / 15), "mvit_v2_s": (16, 2 / 15)}.items():
        opened = open_backbone(f"torchvision/{name}", _weights(torchvision, name, tmp_path), "cpu")
        assert (opened.window, opened.stride) == clip
    with pytest.raises(ConfigError, match="torchvision has no such video model"):
        open_backbone("torchvision/resnet18", None, "cpu")


def _weights(torchvision: Any, name: str, folder: Path) -> Path:
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"
