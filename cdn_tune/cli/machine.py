"""`cdn-tune doctor`: what this machine computes dynamic layers with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Json
from cdn_tune.cli.show.output import print_json, print_line

_INSTALL = "pip install 'cdn-tune[gpu]'"


@app.command(name="doctor", epilog="Example: cdn-tune doctor")
def machine(json: Json = False) -> None:
    """Tell what this machine's GPU computes dynamic layers with, what was measured, and what is not used, and why."""
    from cdn_tune.training.kernels.diagnose import diagnose

    found = diagnose()
    if json:
        print_json(found)
        return
    for line in machine_lines(found):
        print_line(line)


def machine_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yields what `diagnose` has found, a line each."""
    card, triton = found["card"], found["triton"]
    if card is None:
        yield "no GPU: a CPU convolves in tiles or in groups, and train.kernels stays at auto"
        return
    yield (
        f"{card['name']}: capability {card['capability']}, driver {card['driver']}, torch {card['torch']}, "
        f"CUDA {card['cuda']}, cuDNN {card['cudnn']}"
    )
    if triton["version"] is None:
        yield f"Triton is not installed, torch mixes kernels: {_INSTALL}"
    elif triton["fault"] is not None:
        yield f"Triton {triton['version']} is not used, torch mixes kernels: {triton['fault']}"
    else:
        yield f"Triton {triton['version']} mixes kernels"
    if not found["choices"]:
        yield "no dynamic layer was measured yet: a training measures those it has when it begins (train.kernels=auto)"
    for case, choice in found["choices"].items():
        times = ", ".join(f"{name} {time:.2f} ms" for name, time in choice["milliseconds"].items())
        yield f"{case}: {choice['product']} ({times or 'nothing could be timed'})"
        for name, fault in choice["dropped"].items():
            yield f"  {name} is not used: {fault}"
