"""A search whose home is an object store that fails at times: nodes that share no folder, a driver killed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.errors import RunError
from cdn_tune.training.object_store.store import ObjectStore
from cdn_tune.training.object_store.working_copy import place_of, shown, working_copy
from tests.object_store import Store

from .processes import Driver, command, finish, write_space

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of `ray.cluster_utils` have no token, and cannot start where one is asked for and none was made yet."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def cluster(store: Store, tmp_path: Path, without_token: None) -> Iterator[str]:
    """Two nodes of a CPU each, whose caches are not the driver's, nor each other's; yields the address."""
    from ray.cluster_utils import Cluster

    from cdn_tune.distributed.ray import ray  # noqa: F401 - sets the environment first

    nodes = Cluster()
    try:
        for name in ("first", "second"):
            nodes.add_node(num_cpus=1, env_vars={"CDN_TUNE_CACHE": str(tmp_path / name)}, include_dashboard=False)
        yield nodes.address
    finally:
        nodes.shutdown()


def run_cli(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cdn_tune", *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def home_of(url: str) -> ObjectStore:
    place = place_of(working_copy(url))
    assert place is not None
    return place.store


@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_on_nodes_that_share_nothing(
    workers: int,
    cluster: str,
    tiny: Callable[..., Experiment],
    store: Store,
    postgresql_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more: dict[str, Any] = {"early_stopping": {"name": "none"}}
    if workers > 1:
        more["resources"] = {"workers": workers, "cpus_per_worker": 1}
    space = write_space(tmp_path, tiny(**{"train.epochs": 20, "train.checkpoint": "epoch"}), trials=4, keep=2, **more)
    url = store.url()
    home = home_of(url)
    store.proxy.share = 0.05  # of the requests fail, or are answered late
    start = command(space, Path("unused"), "--address", cluster, "--storage", postgresql_url)
    start[start.index("unused")] = url
    driver = Driver(start, tmp_path / "log")
    assert driver.wait_until(lambda: any("/previous.pt" in name for name in home.entries()), 300)
    refused = subprocess.run(start, capture_output=True, text=True, timeout=100, check=False)
    assert refused.returncode == 2
    assert "is in use by another cdn-tune" in refused.stderr
    driver.kill()
    for name in ("cache", "first", "second"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "another machine"))
    printed = finish([*start, "--resume"], 500)
    assert f"leaderboard: {url}/leaderboard.csv" in printed
    assert "s3cr" not in printed
    names = home.entries()
    kept = [name for name in names if name.startswith("best/") and name.endswith("checkpoint.pt")]
    assert len(kept) == 2
    assert not [name for name in names if name.startswith("trials/") and name.endswith(".pt")]
    assert not [name for name in names if ".ray/" in name or name in (".lease", ".stop")]
    assert sum(name.endswith("metrics.jsonl") for name in names) == 4
    everything = b"".join(home.read(name) or b"" for name in names if not name.endswith(".pt"))
    assert b"s3cr" not in everything
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in everything

    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "a third machine"))
    storage = ("--storage", postgresql_url)
    rows = json.loads(run_cli("leaderboard", url, "--json", *storage))
    assert sorted(row["state"] for row in rows if row["state"] != "refused") == ["complete"] * 4
    status = json.loads(run_cli("search", "status", url, "--json", *storage))
    assert (status["run"], status["is_alive"], status["ended"]) == (url, False, 4)
    assert "no search is running there" in run_cli("search", "stop", url)
    run_cli("evaluate", url)
    facts = json.loads(home.read("evaluation.json") or b"")
    assert len((home.read("looks.jsonl") or b"").splitlines()) == 1
    assert facts["looks"] == 1
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "a fourth machine"))
    features = next(path for path in Path(tiny().data.root).iterdir() if path.suffix == ".hdf5")
    asked = ("--features", str(features), "--video", _a_video(features), "--query", "a person runs", "--json")
    for model in (url, f"{url}/{kept[0]}", f"{url}/{kept[0].rpartition('/')[0]}"):
        assert json.loads(run_cli("predict", model, *asked))["queries"]


def test_a_node_that_cannot_reach_home_is_named(store: Store, tmp_path: Path, without_token: None) -> None:
    from ray.cluster_utils import Cluster

    from cdn_tune.distributed.cluster import connected
    from cdn_tune.distributed.ray import ray
    from cdn_tune.distributed.shared_folder_check import check_shared_folder

    assert not ray.is_initialized()
    run = working_copy(store.url())
    nodes = Cluster()
    try:
        nodes.add_node(num_cpus=1, include_dashboard=False)
        second = nodes.add_node(num_cpus=1, include_dashboard=False)
        with connected(nodes.address):
            check_shared_folder(run)
            (tmp_path / "shared").mkdir()
            check_shared_folder(tmp_path / "shared")
            assert not list((tmp_path / "shared").iterdir())
        nodes.remove_node(second)
        nodes.add_node(num_cpus=1, env_vars={"AWS_SECRET_ACCESS_KEY": "wrong"}, include_dashboard=False)
        with (
            connected(nodes.address),
            pytest.raises(RunError, match=r"node .* cannot reach it .*(access is denied|no such cred)"),
        ):
            check_shared_folder(run)
        assert not home_of(shown(run)).entries()
    finally:
        nodes.shutdown()


def _a_video(features: Path) -> str:
    import h5py

    with h5py.File(features) as file:
        return str(next(iter(file)))
