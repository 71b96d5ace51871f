"""`make compat`: runs the tests marked `compat` with the oldest and the newest supported versions.

Each corner has a virtual environment under `.compat`. The result is written to `docs/reference/compatibility.md`. Which
builds of torch can be had differs between machines, so its version is given: TORCH_OLDEST and TORCH_NEWEST in the
environment.
"""

import os
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from cdn_tune.compat import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".compat"
TABLE = ROOT / "docs" / "reference" / "compatibility.md"
TORCH = "2.13.0"
# Older versions of Ray leave processes of theirs to objects that warn of it when they are collected.
QUIET = ("-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning")
TOOLS = ("pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.120")
HEAD = """# Versions that work together

cdn-tune runs with {ranges}; another version is refused at start, in one line.
`make compat` installs the oldest and the newest of them side by side and runs the tests marked `compat` with each, 20
minutes or so; this table is what it found. torch is installed as {torch} in both unless TORCH_OLDEST or TORCH_NEWEST
names another version.

"""


def requirements(corner: str) -> list[str]:
    """What pip is asked for, besides cdn-tune itself."""
    found = []
    for name, (oldest, below) in SUPPORTED.items():
        if name == "torch":
            found.append(f"torch=={os.environ.get(f'TORCH_{corner.upper()}', TORCH)}")
        else:
            found.append(f"{name}=={oldest}.*" if corner == "oldest" else f"{name}>={oldest},<{below}")
    return found


def python_of(corner: str) -> Path:
    """The Python of a corner, with everything installed."""
    python = FOLDER / corner / "bin" / "python"
    if not python.exists():
        venv.create(FOLDER / corner, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    if corner == "newest":  # what cdn-tune is tested with, or pip would try hundreds of versions of what Ray needs
        pip += ["-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *requirements(corner), "-e", ROOT, *TOOLS], check=True)
    return python


def versions(python: Path) -> str:
    """The versions in a corner, as a heading."""
    code = (
        "import platform; from importlib.metadata import version\n"
        f"print(', '.join(f'{{name}} {{version(name)}}' for name in {list(SUPPORTED)}) + ', Python', "
        "platform.python_version())"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def outcomes(python: Path, corner: str, arguments: list[str]) -> dict[str, Counter[str]]:
    """How the tests ended in a corner, by what they show."""
    record = FOLDER / f"{corner}.xml"
    record.unlink(missing_ok=True)
    command = [
        python,
        "-m",
        "pytest",
        "-m",
        "compat",
        f"--junitxml={record}",
        "-p",
        "no:cacheprovider",
        *QUIET,
        *arguments,
    ]
    ended = subprocess.run(command, cwd=ROOT, check=False).returncode
    if ended not in (0, 1):  # all passed, or some failed
        raise SystemExit(f"{corner}: pytest ended with code {ended}; the table stays as it was")
    found: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(record).iter("testcase"):  # noqa: S314 - pytest has written it
        shown = next((each.get("value") for each in case.iter("property") if each.get("name") == "compat"), None)
        if shown is None:  # a module that is skipped as a whole
            continue
        kinds = {child.tag for child in case}
        how = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found.setdefault(shown, Counter())[how] += 1
    return found


def table(found: dict[str, dict[str, Counter[str]]]) -> str:
    """The outcomes as Markdown: a column per corner, by its versions."""
    lines = [f"| what | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for shown in dict.fromkeys(shown for corner in found.values() for shown in corner):
        cells = [
            ", ".join(f"{count} {how}" for how, count in corner.get(shown, {}).items()) for corner in found.values()
        ]
        lines.append(f"| {shown} | {' | '.join(cell or 'not run' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Runs all corners, or those that are named first; the rest goes to pytest."""
    corners = [each for each in arguments if each in ("oldest", "newest")] or ["oldest", "newest"]
    rest = [each for each in arguments if each not in corners]
    found: dict[str, dict[str, Counter[str]]] = {}
    for corner in corners:
        python = python_of(corner)
        found[f"{corner}: {versions(python)}"] = outcomes(python, corner, rest)
    ranges = ", ".join(
        f"{name} >={oldest}" + (f",<{below}" if below else "") for name, (oldest, below) in SUPPORTED.items()
    )
    text = HEAD.format(ranges=ranges, torch=TORCH) + table(found)
    sys.stdout.write(text)
    if len(corners) == 2 and not rest:
        TABLE.write_text(text, "utf-8")
    return int(any(how != "passed" for corner in found.values() for counts in corner.values() for how in counts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
