"""What a measurement on a GPU holds for: the card, and the versions of all that computes there."""

import hashlib
import re
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel

from cdn_tune.model import kernels

_DRIVER = Path("/proc/driver/nvidia/version")
_NONE = "none"


class Card(BaseModel, frozen=True):
    """A kind of GPU with its software; times measured on one say nothing about another."""

    name: str
    capability: str
    driver: str
    torch: str
    cuda: str
    cudnn: str
    triton: str
    source: str  # digest of our kernels

    @property
    def digest(self) -> str:
        """A name for files."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def this_card(device: torch.device) -> Card:
    """Returns what a GPU is."""
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return Card(
        name=torch.cuda.get_device_name(device),
        capability="{}.{}".format(*torch.cuda.get_device_capability(device)),
        driver=_driver(),
        torch=torch.__version__,
        cuda=torch.version.cuda or _NONE,
        cudnn=str(cudnn or _NONE),
        triton=triton_version() or _NONE,
        source=_source(),
    )


def format_name(dtype: torch.dtype) -> str:
    """Returns the format in which a GPU multiplies: ``bf16``, ``fp16``, ``tf32`` or ``fp32``."""
    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return short.get(dtype, "tf32" if torch.backends.cudnn.allow_tf32 else "fp32")


def triton_version() -> str | None:
    """Returns the installed version of Triton; None if there is none."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def _driver(path: Path = _DRIVER) -> str:
    """Returns the version of NVIDIA's driver; ``none`` where the system does not tell."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return _NONE
    return found[0] if found else _NONE


@cache
def _source() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(str(kernels.__file__)).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
