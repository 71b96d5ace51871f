"""``make bench``: runs every benchmark and assembles benchmarks/RESULTS.md from what they wrote."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def main() -> int:
    """Runs the benchmarks one after the other, each in a process of its own; returns the exit code."""
    names = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    failed = [
        name for name in names if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
    ]
    assemble()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def assemble() -> None:
    """Writes RESULTS.md from what the benchmarks have written."""
    RESULTS.mkdir(exist_ok=True)
    pages = [path.read_text(encoding="utf-8").strip() for path in sorted(RESULTS.glob("*.md"))]
    (HERE / "RESULTS.md").write_text("\n\n".join([heading(), *pages]) + "\n", encoding="utf-8")


def heading() -> str:
    """Returns what the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        "# Benchmark results\n\n"
        "Written by `make bench`. Each table compares two things in one run; machines differ and are noisy, so the "
        "ratios are what counts. A section is of its benchmark's last run, which may be older than this page and of "
        "another processor.\n\n"
        f"- {datetime.now(timezone.utc):%Y-%m-%d}, {processor()}, {torch.get_num_threads()} threads, GPU: {gpu}\n"
        f"- Python {platform.python_version()}, torch {torch.__version__}"
    )


def processor() -> str:
    """Returns the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
