"""What would go wrong in hours is one clear error at the start."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment, ResourcesConfig, SearchSpace
from cdn_tune.distributed.cluster import slots as slots_on
from cdn_tune.errors import ClusterError, ConfigError, RunError, SearchError
from cdn_tune.training.train_trial import open_data
from cdn_tune.tuning.planning import preflight as checks
from cdn_tune.tuning.planning.preflight import (
    check_budget,
    check_disk,
    check_picklable,
    disk_gb,
    findings,
    most_steps,
    preflight,
)
from cdn_tune.tuning.storage import check as storages
from cdn_tune.tuning.storage.check import check_storage, file_system, is_networked, storage_url
from cdn_tune.tuning.study.candidates import Candidates, cost

Tiny = Callable[..., Experiment]
LAYERS = {"type": "int", "low": 1, "high": 3}
NETWORK = "/dev/vda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\nproc /proc proc rw 0 0\n"


def space_of(**more: Any) -> SearchSpace:
    plain = {"name": "s", "experiment": "x", "parameters": {"model.map.layers": LAYERS}, **more}
    return SearchSpace.model_validate(plain)


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.fixture
def on_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that /proc/mounts calls NFS."""
    mounts = tmp_path / "mounts"
    shared = tmp_path / "my shared"
    shared.mkdir()
    escaped = str(shared).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {escaped} nfs4 rw 0 0\n")
    monkeypatch.setattr(storages, "file_system", lambda path: file_system(path, mounts))
    monkeypatch.setattr(checks, "file_system", lambda path: file_system(path, mounts))
    return shared


def test_file_system_is_that_of_the_innermost_mount(tmp_path: Path, on_network: Path) -> None:
    mounts = tmp_path / "mounts"
    assert file_system(on_network / "runs" / "new", mounts) == "nfs4"
    assert file_system(tmp_path, mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "absent") is None
    assert [is_networked(kind) for kind in ("nfs", "nfs4", "cifs", "lustre", "fuse.sshfs", "fuse.juicefs")] == [
        True
    ] * 6
    assert [is_networked(kind) for kind in ("ext4", "xfs", "overlay", "tmpfs", "fuse.fuseiso", None)] == [False] * 6


def test_sqlite_on_a_network_file_system(on_network: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{on_network}/study.db"
    with pytest.raises(RunError, match=r"SQLite on a network file system \(nfs4\).*leave --storage out.*postgresql://"):
        check_storage(url, nodes=2)
    [warning] = check_storage(url, nodes=1)
    assert "nfs4" in warning
    assert check_storage(f"journal:///{on_network}/study.journal", nodes=2) == []
    assert check_storage(f"sqlite:///{tmp_path}/study.db", nodes=2) == []
    assert files_in(on_network) == []


def test_sqlite_file(tmp_path: Path) -> None:
    damaged = tmp_path / "study.db"
    damaged.write_bytes(b"no database " * 100)
    with pytest.raises(RunError, match=r"study\.db: cannot be read .*name another file"):
        check_storage(f"sqlite:///{damaged}")
    good = tmp_path / "good.db"
    with sqlite3.connect(good) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = good.read_bytes()
    assert check_storage(f"sqlite:///{good}") == []
    assert good.read_bytes() == before
    assert check_storage(f"sqlite:///{tmp_path}/new/run/study.db") == []
    assert not (tmp_path / "new").exists()
    with pytest.raises(RunError, match="is a folder; name a file in it"):
        check_storage(f"sqlite:///{tmp_path}")
    with pytest.raises(RunError, match="is no folder; name a file elsewhere"):
        check_storage(f"journal:///{good}/study.journal")
    with pytest.raises(ConfigError, match="lost with the process; name a file"):
        check_storage("sqlite://")


@pytest.mark.parametrize("url", ["redis://host/0", "nonsense", "s3://bucket/x", "oracle://u@h/x"])
def test_unknown_storage(url: str) -> None:
    with pytest.raises(ConfigError, match="not known; use sqlite:///FILE, journal:///FILE, postgresql://"):
        check_storage(url)


@pytest.mark.parametrize(("url", "extra"), [("postgresql://u@h/x", "postgresql"), ("mysql://u@h/x", "mysql")])
def test_missing_driver_names_the_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages.importlib.util, "find_spec", {}.get)
    with pytest.raises(ConfigError, match=rf"pip install 'cdn-tune\[{extra}\]'"):
        check_storage(url)


def test_server_that_does_not_answer_is_told_without_the_password() -> None:
    pytest.importorskip("psycopg2")
    with pytest.raises(RunError, match=r"postgresql\+psycopg2://me:\*\*\*@127\.0\.0\.1:1/x: does not answer") as caught:
        check_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_means_the_driver_of_its_extra() -> None:
    assert storage_url("postgresql://u@h/x") == "postgresql+psycopg2://u@h/x"
    assert storage_url("mysql://u@h/x") == "mysql+pymysql://u@h/x"
    assert storage_url("postgresql+psycopg://u@h/x") == "postgresql+psycopg://u@h/x"
    assert storage_url("sqlite:///x.db") == "sqlite:///x.db"


def test_what_is_bound_to_this_process_cannot_be_sent() -> None:
    check_picklable(lambda value: value + 1)
    lock = threading.Lock()

    def trainable(config: dict[str, Any]) -> None:
        lock.acquire()

    with pytest.raises(SearchError, match=r"trainable cannot be sent to the workers \(.*lock"):
        check_picklable(trainable)


@pytest.mark.parametrize(
    ("resources", "nodes", "slots"),
    [
        ({"cpus_per_worker": 2}, [{"CPU": 5.0}], 2),
        ({"cpus_per_worker": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 2),
        ({"gpus_per_worker": 0.4}, [{"CPU": 8.0, "GPU": 2.0}], 4),
        ({"gpus_per_worker": 0.25}, [{"CPU": 3.0, "GPU": 1.0}], 3),
        ({"workers": 2, "gpus_per_worker": 1.0}, [{"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0, "GPU": 1.0}], 2),
        ({"workers": 3}, [{"CPU": 2.0}, {"CPU": 2.0}], 1),
    ],
)
def test_trials_at_once(resources: dict[str, Any], nodes: list[dict[str, float]], slots: int) -> None:
    assert slots_on(ResourcesConfig.model_validate(resources), nodes) == slots


@pytest.mark.parametrize(
    ("resources", "nodes", "told"),
    [
        ({"cpus_per_worker": 4}, [{"CPU": 2.0}, {"CPU": 2.0}], "room for 0 of them .the largest node has 2 CPUs"),
        ({"gpus_per_worker": 1.0}, [{"CPU": 8.0}], "resources.gpus_per_worker=0 trains on CPUs"),
        ({"workers": 2, "gpus_per_worker": 1.0}, [{"CPU": 8.0, "GPU": 1.0}], "2 x 1 CPUs and 1 GPUs.*room for 1"),
    ],
)
def test_what_can_never_be_placed(resources: dict[str, Any], nodes: list[dict[str, float]], told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        slots_on(ResourcesConfig.model_validate(resources), nodes)


def test_disk(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(keep=3)
    candidates = Candidates(space, tiny())
    largest = tiny(**{"model.map.layers": 3})
    need = 4 * cost("checkpoint_gb", largest) + 3 * 4 * cost("parameters", largest) / 1e9
    assert disk_gb(space, candidates, 4) == pytest.approx(need)
    assert check_disk(space, candidates, tmp_path / "run", 4) is None
    with pytest.raises(ConfigError, match=r"disk_budget_gb=1e-06: one trial and the best checkpoint need up to"):
        check_disk(space_of(keep=3, disk_budget_gb=1e-6), candidates, tmp_path, 4)
    warning = check_disk(space_of(keep=3, disk_budget_gb=need * 0.9), candidates, tmp_path, 4)
    assert warning is not None  # fewer at once, and fewer kept, fit
    assert "fewer will run at once" in warning

    def free(gigabytes: float) -> None:
        usage = type("Usage", (), {"free": gigabytes * 1e9})
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)

    free(need * 0.9)
    with pytest.raises(RunError, match=r"GB free; choose another --run folder, lower keep"):
        check_disk(space, candidates, tmp_path, 4)
    held = tmp_path / "trials/0001/checkpoints/last.pt"
    held.parent.mkdir(parents=True)
    held.write_bytes(bytes(int(need * 0.2e9)))  # what a search taken up again holds already is not needed twice
    assert "GB free" in (check_disk(space, candidates, tmp_path, 4) or "")


def test_budget_of_gpu_hours_without_gpus() -> None:
    with pytest.raises(ConfigError, match=r"budget\.gpu_hours=5: trials take no GPU"):
        check_budget(space_of(budget={"gpu_hours": 5.0}))
    check_budget(space_of(budget={"gpu_hours": 5.0}, resources={"gpus_per_worker": 0.5}))


def test_early_stopping_by_steps_within_a_trial(tiny: Tiny) -> None:
    experiment = tiny(**{"train.epochs": 3, "train.batch_size": 8})
    steps = 3 * -(-len(open_data(experiment.data)["train"]) // 8)
    late, too_late = (space_of(early_stopping={"unit": "step", "min_resource": least}) for least in (steps, steps + 1))
    assert most_steps(late, [experiment]) == steps
    with pytest.raises(ConfigError, match=rf"min_resource={steps + 1}: a trial has at most {steps} steps"):
        most_steps(too_late, [experiment])
    searched = {"train.batch_size": {"type": "categorical", "choices": [4, 8]}, "model.map.layers": LAYERS}
    assert (most_steps(space_of(parameters=searched, early_stopping={"unit": "step"}), [experiment]) or 0) > steps
    assert most_steps(space_of(early_stopping={"min_resource": 3}), [experiment]) is None
    of_videos = tiny(**{"train.epochs": 3, "train.batch_size": 8, "train.batch_of": "videos"})
    videos = len(set(open_data(experiment.data)["train"].videos.tolist()))
    by_step = space_of(early_stopping={"unit": "step"})
    assert most_steps(by_step, [of_videos]) == 3 * -(-videos // 8) < steps


def test_all_at_once(tiny: Tiny, tmp_path: Path, on_network: Path) -> None:
    steps = {"type": "int", "low": 1, "high": 2, "when": {"model.clip_pool": "mean"}}
    space = space_of(parameters={"model.map.layers": LAYERS, "model.attention_steps": steps})
    candidates = Candidates(space, tiny())
    url = f"sqlite:///{tmp_path}/run/study.db"
    [warning] = preflight(space, candidates, tmp_path / "run", url, [{"CPU": 2.0}])
    assert warning == "parameters.model.attention_steps is never sampled: model.clip_pool is attention, not mean"
    two = [{"CPU": 1.0, "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0}, {"CPU": 1.0, "node:10.0.0.2": 1.0}]
    alone = [{**node, "node:10.0.0.1": 1.0} for node in ({"CPU": 1.0}, {"CPU": 1.0})]  # two nodes of one machine
    assert preflight(space, candidates, tmp_path / "run", url, alone) == [warning]
    warnings = preflight(space, candidates, tmp_path / "run", url, two)
    assert any("local file system (ext4), and 2 machines must reach it" in line for line in warnings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SearchError, match="cannot be sent"):
        preflight(space, candidates, tmp_path, url, [{"CPU": 2.0}], trainable=threading.Lock())
    bad = space_of(budget={"gpu_hours": 1.0}, resources={"cpus_per_worker": 9}, disk_budget_gb=1e-6)
    errors, _ = findings(bad, Candidates(bad, tiny()), tmp_path, "redis://x", [{"CPU": 2.0}])
    assert len(errors) == 4
