"""The pages about evaluation name every key and option there is."""

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.evaluation.evaluate import CHANGEABLE, evaluate_run
from cdn_tune.evaluation.probe import MOST_QUERIES, probe_run
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.scoring import GRID
from cdn_tune.moments.bootstrap import RESAMPLES

PAGES = ("how-to/evaluation.md", "explanation/protocol.md", "reference/run-folder.md")
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES)


def table(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_key_is_described(trained: Path) -> None:
    result = evaluate_run(trained, None, Request(seeds=1, resamples=20))
    described = set(re.findall(r"`([a-z0-9_]+)`", table("evaluation.json")))
    parts = [result["nms"], result["models"][0], result["seeds"], result["seeds"]["runs"][0]]
    parts += [result["advantage"], result["bootstrap"], result["groups"], result["groups"]["position"][0]]
    missing = {key for part in [result, *parts] for key in part} - described
    assert not missing
    first = [line.split("|")[1] for line in table("evaluation.json").splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(first))) == set(result)


def test_every_key_of_a_probe_is_described(trained: Path) -> None:
    result = probe_run(trained, None, Request(resamples=20))
    described = set(re.findall(r"`([a-z0-9_]+)`", table("probe.json")))
    parts = [result, result["advantage"], result["bootstrap"], result["baselines"], result["probes"]]
    parts += [*result["baselines"].values(), *result["probes"].values()]
    assert not {key for part in parts for key in part} - described
    first = [line.split("|")[1] for line in table("probe.json").splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(first))) == set(result)
    assert f"more than\n{MOST_QUERIES:,} queries".replace(",", " ") in PAGE


def test_the_example_line_has_the_keys_of_the_file(trained: Path) -> None:
    evaluate_run(trained, None, Request(resamples=20))
    example = json.loads(table("predictions.jsonl").split("```json\n")[1].split("```")[0])
    line = json.loads((trained / "predictions.jsonl").read_text().splitlines()[0])
    assert list(example) == list(line)


def test_options_and_figures() -> None:
    shown = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    page = re.sub(r"<!--.*?-->", "", (DOCS / PAGES[0]).read_text(encoding="utf-8"), flags=re.DOTALL)
    for option in set(re.findall(r"--[a-z][a-z-]+", page)) - {"--json"}:
        assert option in shown, option
    for key in CHANGEABLE:
        assert f"`{key}" in PAGE or f"{key}=" in PAGE
    assert (GRID[0], GRID[-1]) == (0.3, 0.8)
    assert f"{RESAMPLES:,}".replace(",", " ") in PAGE
