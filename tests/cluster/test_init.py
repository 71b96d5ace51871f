"""`cdn-tune cluster init`: what it writes passes what the files in ``cluster/`` pass, and writes over nothing."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cdn_tune import __version__
from cdn_tune.cli import app
from cdn_tune.distributed import cluster_files
from cdn_tune.distributed.cluster_files import KINDS, installed_wheel, write_new
from cdn_tune.errors import RunError

from . import kustomize, test_kubernetes, test_launchers, test_slurm

LAUNCHERS = ["aws", "gcp", "azure", "on-premise"]
WHEEL = f"cdn_tune-{__version__}-py3-none-any.whl"


def init(kind: str, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["cluster", "init", kind, str(folder), *options])


def written(kind: str, folder: Path, *options: str) -> Path:
    """Writes the files of a kind; returns their folder, in whose name is a space."""
    result = init(kind, folder / "my $(cluster)", *options)
    assert result.exit_code == 0, result.output
    return folder / "my $(cluster)"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A file that has a wheel's name."""
    path = tmp_path / "dist" / WHEEL
    path.parent.mkdir()
    path.write_bytes(b"\x80 a wheel")
    return path


def config(folder: Path, kind: str) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / f"{kind}.yaml").read_text()))


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_kind_is_written_and_listed(kind: str, tmp_path: Path) -> None:
    result = init(kind, tmp_path)
    assert result.exit_code == 0, result.output
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(result.stdout.splitlines()) == [str(path) for path in files]
    originals = [test_launchers.CLUSTER / name for name in KINDS[kind]]
    expected = {path for name in originals for path in [name, *name.rglob("*")] if path.is_file()}
    names = {str(path.relative_to(test_launchers.CLUSTER)) for path in expected}
    assert {str(path.relative_to(tmp_path)) for path in files} - {"constraints.txt"} == names
    blanks = {name for path in files for name in re.findall(r"REPLACE_[A-Z_0-9]+", path.read_text())}
    assert all(name in result.stderr for name in blanks)
    page = re.search(r"how to go on: (.+)", result.stderr)
    assert page is not None
    assert Path(page[1]).is_file()
    for path in files:
        text = path.read_text()
        assert "checkout" not in text, path
        assert not re.search(r"(?<![\w/.])cluster/", text), f"{path} names a path of the checkout"


@pytest.mark.parametrize("options", [False, True], ids=["from the index", "with a wheel"])
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_rays_launcher_accepts_it(kind: str, options: bool, tmp_path: Path, wheel: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    folder = written(kind, tmp_path, *(["--wheel", str(wheel)] if options else []))
    made = config(folder, kind)
    validate_config(dict(prepare_config(made)))
    mounts = {there: here for there, here in made["file_mounts"].items() if there.startswith("~/cdn-tune/")}
    assert set(mounts) == {"~/cdn-tune/constraints.txt", *({f"~/cdn-tune/{WHEEL}"} if options else set())}
    assert all(Path(here).is_absolute() and Path(here).is_file() for here in mounts.values())
    assert all(Path(here).name == Path(there).name for there, here in mounts.items())
    (install,) = [line for line in made["setup_commands"] if "pip install" in line and "cdn-tune" in line]
    wanted = rf'"\$HOME/cdn-tune/{re.escape(WHEEL)}\[' if options else rf'"cdn-tune\[[a-z0-9,]+\]=={__version__}"'
    assert re.search(wanted, install), install
    rest = test_launchers.load(kind)
    for key in set(rest) - {"file_mounts", "setup_commands"}:
        assert made[key] == rest[key], key
    for line in made["setup_commands"]:
        subprocess.run(["bash", "-n", "-c", line], check=True, timeout=30)


@pytest.mark.parametrize("options", [False, True], ids=["from the index", "with a wheel"])
def test_kuberay_accepts_it_and_its_image_builds_from_the_folder(options: bool, tmp_path: Path, wheel: Path) -> None:
    folder = written("kubernetes", tmp_path, *(["--wheel", str(wheel)] if options else []))
    for overlay in test_kubernetes.OVERLAYS:
        objects = {each["kind"]: each for each in kustomize.resolve(folder / "kubernetes" / overlay)}
        for kind in {"RayCluster", "RayJob"} & set(objects):
            assert test_kubernetes.errors(kind, objects[kind]) == []
            assert f"'rayVersion': '{metadata.version('ray')}'" in str(objects[kind])
        for pod in kustomize.pods(list(objects.values())):
            assert {each["image"] for each in kustomize.containers(pod)} == {f"REPLACE_REGISTRY/cdn-tune:{__version__}"}
    lines = re.sub(r"\\\n\s*", "", (folder / "Dockerfile").read_text()).splitlines()
    copied = [word for line in lines if re.match("COPY [^-]", line) for word in line.split()[1:-1]]
    assert copied == ["constraints.txt", *([WHEEL] if options else [])]
    assert all((folder / name).is_file() for name in copied)
    ignored = (folder / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line[1:] for line in ignored if line.startswith("!")] == copied
    assert ignored[1] == "*"
    wanted = f'"./{WHEEL}[${{EXTRAS}}]"' if options else f'"cdn-tune[${{EXTRAS}}]=={__version__}"'
    assert any(line.startswith("RUN") and line.endswith(f"--constraint constraints.txt {wanted}") for line in lines)
    (build,) = [line for line in lines if "docker build" in line]
    assert shlex.split(build.lstrip("# "))[-1] == str(folder)
    python = f"python:{sys.version_info.major}.{sys.version_info.minor}"
    assert sum(line.startswith(f"FROM {python}") for line in lines) == 2


def test_slurms_scripts_run_in_this_environment(tmp_path: Path) -> None:
    folder = written("slurm", tmp_path)
    for name in ("search.sbatch", "train.sbatch"):
        test_slurm.test_shellcheck_finds_nothing(folder / "slurm" / name)
        test_slurm.test_directives_come_before_the_first_command(folder / "slurm" / name)
        (line,) = re.findall("^environment=.*$", (folder / "slurm" / name).read_text(), re.MULTILINE)
        told = subprocess.run(
            ["bash", "-c", f'{line}; printf "%s" "$environment"'], env={}, capture_output=True, text=True, check=True
        )
        assert told.stdout == sys.prefix


def test_an_environment_of_any_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = '/envs/a "b" $(c) `d` {e} \\ é'
    monkeypatch.setattr(sys, "prefix", odd)
    (line,) = re.findall(
        "^environment=.*$", (written("slurm", tmp_path) / "slurm" / "search.sbatch").read_text(), re.MULTILINE
    )
    command = ["bash", "-c", f'{line}; printf "%s" "$environment"']
    assert subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout == odd


def test_versions_are_those_that_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.77.1" if name == "ray" else installed(name))
    monkeypatch.setattr(cluster_files, "_PYTHON", "3.12")
    folder = written("kubernetes", tmp_path)
    assert "\nray==2.77.1\n" in (folder / "constraints.txt").read_text()
    assert "rayVersion: 2.77.1\n" in (folder / "kubernetes" / "job" / "rayjob.yaml").read_text()
    docker = (folder / "Dockerfile").read_text()
    assert docker.count("\nFROM python:3.12-slim-bookworm") == 2
    assert "Python 3.12." in docker


# --- which cdn-tune machines install ---------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, origin: object) -> None:
    """Has pip's record of where this cdn-tune came from say something else."""
    text = origin if isinstance(origin, str | None) else json.dumps(origin)
    monkeypatch.setattr(cluster_files, "_origin", lambda: text)


def test_it_is_the_wheel_that_is_installed_here(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pretend(monkeypatch, {"url": wheel.as_uri(), "archive_info": {"hashes": {"sha256": digest}}})
    assert installed_wheel() == wheel
    result = init("aws", tmp_path / "cluster")
    assert f"its machines install {WHEEL}" in result.stderr
    assert (tmp_path / "cluster" / WHEEL).read_bytes() == wheel.read_bytes()
    wheel.write_bytes(b"another")
    assert installed_wheel() is None
    wheel.unlink()
    assert installed_wheel() is None


@pytest.mark.parametrize("origin", ["{", "[]", {"url": "file:///src", "dir_info": {"editable": True}}])
def test_where_there_is_no_wheel_it_says_what_is_installed_instead(
    origin: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, origin)
    result = init("gcp", tmp_path)
    assert result.exit_code == 0
    assert f"cdn-tune=={__version__} from the package index" in result.stderr
    assert "warning: this cdn-tune was not installed from there; --wheel FILE" in result.stderr
    pretend(monkeypatch, None)
    assert "warning" not in init("gcp", tmp_path).stderr


# --- what goes wrong -------------------------------------------------------------------------------------------------


def the_error(result: Result) -> str:
    """The one line of an error."""
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["kubernets", "{folder}"],
            "kubernets: no such kind; did you mean kubernetes? there are slurm, kubernetes, aws",
        ),
        (["lsf!", "{folder}"], "lsf!: no such kind; there are slurm"),
        (["aws", "{folder}/a\nb"], "control characters"),
        (["aws", "/proc/none/cluster"], "/proc/none/cluster/constraints.txt: cannot be written ("),
        (["aws", "{file}"], "file: is a file, not a folder"),
        (["aws", "{file}/below"], "cannot be written (Not a directory)"),
        (["slurm", "{file}"], "file/slurm/search.sbatch: cannot be written (Not a directory)"),
        (["aws", "{folder}", "--wheel", "{file}"], "is no wheel of cdn-tune"),
        (["aws", "{folder}", "--wheel", "cdn_tune-0.0.9-py3-none-any.whl"], "is of version 0.0.9, and this is"),
        (["aws", "{folder}", "--wheel", WHEEL], "cannot be read (No such file or directory)"),
        (["slurm", "{folder}", "--wheel", WHEEL], "leave it out"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "cluster"
    filled = [each.format(folder=folder, file=tmp_path / "file") for each in arguments]
    assert told in the_error(CliRunner().invoke(app, ["cluster", "init", *filled]))
    assert not folder.exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_it_never_writes_over_a_file(tmp_path: Path) -> None:
    assert init("aws", tmp_path).exit_code == 0
    again = init("aws", tmp_path)
    assert again.exit_code == 0
    assert again.stdout.count("(there already, the same)") == 2
    assert init("gcp", tmp_path).exit_code == 0, "two kinds share a folder"
    mine = tmp_path / "azure.yaml"
    mine.write_text("mine")
    (tmp_path / "constraints.txt").unlink()
    assert "azure.yaml: is there already, and is never written over" in the_error(init("azure", tmp_path))
    assert mine.read_text() == "mine"
    assert not (tmp_path / "constraints.txt").exists(), "nothing is written then"
    mine.unlink()
    mine.symlink_to("nowhere")
    assert "is there already" in the_error(init("azure", tmp_path))
    assert not (tmp_path / "nowhere").exists()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Has no file become longer than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_a_file(tmp_path: Path) -> None:
    with room_for(6000):  # constraints.txt fits
        result = init("aws", tmp_path)
    assert "aws.yaml: cannot be written (File too large); make room there" in the_error(result)
    assert [path.name for path in tmp_path.iterdir()] == ["constraints.txt"]
    assert init("aws", tmp_path).exit_code == 0


def test_two_at_once_write_whole_files(tmp_path: Path) -> None:
    """Each ends well, or finds a file of the other that is not yet whole; what is there in the end is whole."""
    files = {tmp_path / f"{number}" / "file": bytes([number]) * 200_000 for number in range(30)}
    start, refused = threading.Barrier(2), []

    def write() -> None:
        start.wait()
        try:
            write_new(files)
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) <= 1
    assert {path: path.read_bytes() for path in files} == files
