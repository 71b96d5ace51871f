"""What people install: the sdist and the wheel built from it, and the commands of a wheel without the repository."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cdn_tune import __version__
from cdn_tune.config.schema import schema_text
from cdn_tune.distributed.cluster_files import KINDS
from tests.docs.pages import read_page, run_page

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("cluster", "docs", "experiments", "search_spaces")
WHEEL = f"cdn_tune-{__version__}-py3-none-any.whl"
EXTRAS = {"dev", "fanova", "gpu", "mysql", "onnx", "postgresql", "s3", "text"}


def build(source: Path, target: str, into: Path) -> None:
    """Builds an sdist or a wheel, with what is installed here."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(into)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel, and below ``again`` the wheel that the sdist gives."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "sdist", folder)
    build(ROOT, "wheel", folder)
    with tarfile.open(folder / f"cdn_tune-{__version__}.tar.gz") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    build(folder / "unpacked" / f"cdn_tune-{__version__}", "wheel", folder / "again")
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_sdist_builds_the_same_wheel(built: Path) -> None:
    wheel, again = contents(built / WHEEL), contents(built / "again" / WHEEL)
    wheel.pop("cdn_tune/shipped/docs/reference/commands.md", None)  # which `make docs` leaves here
    assert set(wheel) == set(again)
    assert [name for name in wheel if wheel[name] != again[name]] == []


def test_the_wheel_holds_the_package_and_what_it_reads(built: Path) -> None:
    files = contents(built / WHEEL)
    ours = {name for name in files if not name.startswith(f"cdn_tune-{__version__}.dist-info/")}
    tracked = subprocess.run(
        ["git", "ls-files", "cdn_tune", *SHIPPED, "constraints.txt"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode == 0:  # else this is no checkout
        places = {
            name: name if name.startswith("cdn_tune/") else f"cdn_tune/shipped/{name}"
            for name in tracked.stdout.split()
        }
        assert {name for name, place in places.items() if place not in ours} == set()
    assert all(name.startswith("cdn_tune/") for name in ours)
    assert sum(map(len, files.values())) < 10e6


def test_its_metadata_tell_what_it_is(built: Path) -> None:
    metadata = email.message_from_bytes(contents(built / WHEEL)[f"cdn_tune-{__version__}.dist-info/METADATA"])
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("cdn-tune", __version__, "MIT")
    assert str(metadata.get_payload()).startswith("# cdn-tune\n")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra", [])) >= EXTRAS
    assert not [name for name in metadata.get_all("Requires-Dist", []) if "@" in name], "from elsewhere than the index"


def test_the_tested_versions_satisfy_what_it_and_its_extras_require(built: Path) -> None:
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text()))
    tested = {canonicalize_name(name): version for name, version in pins.items()}
    metadata = email.message_from_bytes(contents(built / WHEEL)[f"cdn_tune-{__version__}.dist-info/METADATA"])
    wanted = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert len(wanted) > 30
    refused = [str(each) for each in wanted if not each.specifier.contains(tested[canonicalize_name(each.name)])]
    assert refused == []


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's folder of programs: the wheel, and this environment's packages in place of what it needs."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--no-index",
        "--no-deps",
    ]
    done = subprocess.run([*command, str(built / WHEEL)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def call(installed: Path, folder: Path, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Calls `cdn-tune` of the environment in a folder that has nothing to do with the repository."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RAY_"))}
    done = subprocess.run(
        [installed / "cdn-tune", *arguments],
        cwd=folder,
        env={**environment, "COLUMNS": "400", "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(ROOT) not in done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_without_the_repository_its_help_leads_to_its_documentation(installed: Path, tmp_path: Path) -> None:
    assert call(installed, tmp_path, "--version").stdout == f"cdn-tune {__version__}\n"
    told = call(installed, tmp_path, "--help").stdout
    docs = Path(told.partition("Documentation: ")[2].split()[0])
    assert docs.is_relative_to(installed.parent)
    assert {path.name for path in docs.rglob("*.md")} == {path.name for path in (ROOT / "docs").rglob("*.md")}


@pytest.mark.slow
def test_without_the_repository_it_has_its_schemas_and_spaces(installed: Path, tmp_path: Path) -> None:
    for kind in ("space", "experiment"):
        assert call(installed, tmp_path, "schema", kind).stdout == schema_text(kind)
    told = call(installed, tmp_path, "search", "--help").stdout
    assert "Usage" in told


@pytest.mark.slow
def test_without_the_repository_it_writes_cluster_files_that_install_this_wheel(
    installed: Path, built: Path, tmp_path: Path
) -> None:
    for kind in KINDS:
        done = call(installed, tmp_path, "cluster", "init", kind, kind)
        assert all((tmp_path / line).is_file() for line in done.stdout.splitlines())
        docs = Path(done.stderr.rpartition("how to go on: ")[2].strip())
        assert docs.is_file()
        assert docs.is_relative_to(installed.parent)
        if kind != "slurm":
            assert (tmp_path / kind / WHEEL).read_bytes() == (built / WHEEL).read_bytes()
    assert f":-{installed.parent}}}" in (tmp_path / "slurm" / "slurm" / "search.sbatch").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_the_repository_the_demo_runs(installed: Path, tmp_path: Path) -> None:
    call(installed, tmp_path, "demo", "--trials", "2", "--run", "runs/demo", seconds=800)
    for name in ("study.journal", "leaderboard.csv", "evaluation.json", "report/index.html"):
        assert (tmp_path / "runs" / "demo" / name).is_file()
    assert list((tmp_path / "runs" / "demo" / "best").glob("*/checkpoint.pt"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_without_the_repository_the_first_tutorial_is_walked(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    page = read_page(ROOT / "docs" / "tutorials" / "first-search.md")
    run_page(page, tmp_path, programs=installed)
    assert (tmp_path / "runs" / "demo" / "report" / "index.html").is_file()
