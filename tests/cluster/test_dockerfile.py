"""The Dockerfile, read but not built: no container engine runs where the tests run."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster" / "Dockerfile"
KNOWN = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "USER", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """The instructions with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", text)
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


def copied() -> list[str]:
    """What is copied from the checkout."""
    sources = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    return [source for line in sources for source in line]


def test_only_instructions_that_are_meant() -> None:
    assert {name for name, _ in instructions()} <= KNOWN, "ADD, EXPOSE, VOLUME and the like are not wanted"


def test_base_images_are_pinned_slim_and_the_same() -> None:
    images = {rest.split()[0] for name, rest in instructions() if name == "FROM"}
    assert len(images) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", images.pop())


def test_it_ends_as_the_user_of_the_manifests() -> None:
    last_stage = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    users = [rest for name, rest in last_stage if name == "USER"]
    assert users == ["1000:1000"]
    after = last_stage[[name for name, _ in last_stage].index("USER") :]
    assert "RUN" not in {name for name, _ in after}
    manifest = (ROOT / "cluster" / "kubernetes" / "base" / "raycluster.yaml").read_text()
    assert "runAsUser: 1000" in manifest
    assert "runAsGroup: 1000" in manifest


def test_everything_it_copies_is_there_and_reaches_the_builder() -> None:
    assert all((ROOT / source).exists() for source in copied())
    lines = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())
    project = (ROOT / "pyproject.toml").read_text()
    shipped = re.findall(r'^(\w+) = "cdn_tune/shipped', project, re.MULTILINE)
    assert {"cdn_tune", "pyproject.toml", "README.md", "LICENSE", *shipped} <= set(copied())


def test_packages_are_pinned_and_no_cache_stays() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--no-cache-dir" in line for line in installs)
    assert "--constraint constraints.txt" in installs[-1]
    constraints = (ROOT / "constraints.txt").read_text()
    assert len(re.findall(r"^torch==", constraints, re.MULTILINE)) == 1
    assert f"ray=={version('ray')}" in constraints


def test_extras_exist() -> None:
    (extras,) = [rest.removeprefix("EXTRAS=") for name, rest in instructions() if rest.startswith("EXTRAS=")]
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))


def test_command_is_an_array_and_nothing_is_secret() -> None:
    (command,) = [rest for name, rest in instructions() if name == "CMD"]
    assert json.loads(command) == ["cdn-tune", "--help"]
    settings = " ".join(rest for name, rest in instructions() if name in ("ENV", "ARG"))
    assert "RAY_AUTH_MODE=token" in settings
    assert not re.search(r"(?i)(password|secret|token_path|auth_token|access_key)", settings)


def test_every_instruction_is_explained() -> None:
    lines = FILE.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.split(" ")[0] in KNOWN - {"WORKDIR", "COPY"}:
            above = lines[number - 1]
            assert above.startswith(("#", "COPY", "ARG", "WORKDIR")) or lines[number - 2].startswith("#"), line
