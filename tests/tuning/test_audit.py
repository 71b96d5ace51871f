"""The audit finds and names what a run leaves behind."""

import os
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from cdn_tune.tuning.engine.ray import audit as module
from cdn_tune.tuning.engine.ray.audit import Audit, audit, snapshot

SHARED_MEMORY = module._SHARED_MEMORY


def said(path: Path) -> str:
    """What a process has written so far."""
    return path.read_text() if path.exists() else ""


class Sleeper:
    """An actor that does nothing."""


@pytest.mark.compat("what a search leaves behind is found")
@pytest.mark.usefixtures("ray_session")
def test_a_placement_group_and_actors_are_found_and_named() -> None:
    from ray.util.placement_group import placement_group

    from cdn_tune.distributed.ray import ray, remove_placement_group

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    before = snapshot()
    group = placement_group([{"CPU": 0.01}])
    detached = ray.remote(num_cpus=0)(Sleeper).options(name="left", lifetime="detached").remote()
    try:
        ray.get(detached.__ray_ready__.remote())
        found = audit(before, wait=0)
        assert not found.is_clean
        assert len(found.placement_groups) == 1
        assert group.id.hex() in found.placement_groups[0]
        assert len(found.actors) == 1
        assert found.actors[0].startswith("Sleeper ")
        assert not found.processes  # Ray's workers are Ray's
        assert str(found).startswith(f"left behind: 1 placement groups ({group.id.hex()} of 1 bundles")
        assert "1 actors (Sleeper " in str(found)
    finally:
        remove_placement_group(group)
        ray.kill(detached)
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert audit(before) == Audit()


@pytest.mark.usefixtures("ray_session")
def test_what_is_on_its_way_out_is_waited_for() -> None:
    before = snapshot()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    assert not audit(before, wait=0).is_clean
    assert audit(before, wait=30).is_clean
    assert child.wait() == 0


def test_a_process_is_found_and_named() -> None:
    before = snapshot()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found = audit(before, wait=0)
        assert len(found.processes) == 1
        assert found.processes[0].startswith(f"{child.pid} {Path(sys.executable).name}")
    finally:
        child.kill()
    assert audit(before, wait=30).is_clean  # a zombie holds nothing
    child.wait()
    assert str(audit(before, wait=0)) == "nothing left behind"


def test_grandchildren_count() -> None:
    before = snapshot()
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        try:
            assert {name.split()[0] for name in audit(before, wait=0).processes} == {str(child.pid), str(grandchild)}
        finally:
            os.kill(grandchild, 9)
            child.communicate()


def test_a_segment_of_shared_memory_is_found_and_named() -> None:
    before = snapshot()
    segment = shared_memory.SharedMemory(create=True, size=1024)
    try:
        assert audit(before, wait=0).shared_memory == (str(SHARED_MEMORY / segment.name.lstrip("/")),)
    finally:
        segment.close()
        segment.unlink()
    assert not audit(before, wait=0).shared_memory


def test_another_program_s_segment_is_its_own(tmp_path: Path) -> None:
    before = snapshot()
    code = (
        "import os, sys; from multiprocessing import shared_memory; "
        "s = shared_memory.SharedMemory(create=True, size=64); print(s.name, flush=True); "
        "sys.stdin.read(); s.close(); s.unlink()"
    )
    # Started through a shell that ends: no descendant of ours.
    script = f"{sys.executable} -c '{code}' < {tmp_path}/fifo > {tmp_path}/name & sleep 0"
    os.mkfifo(tmp_path / "fifo")
    subprocess.run(["sh", "-c", script], check=True)
    with (tmp_path / "fifo").open("w"):
        deadline = time.monotonic() + 60
        while not said(tmp_path / "name") and time.monotonic() < deadline:
            time.sleep(0.05)
        name = (tmp_path / "name").read_text().strip().lstrip("/")
        assert (SHARED_MEMORY / name).exists()
        assert not audit(before, wait=0).shared_memory
    while (SHARED_MEMORY / name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_process_with_gpu_memory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        before = snapshot()
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '%s\\n' {child.pid} {os.getppid()} {os.getpid()} 1234567890\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert audit(before, wait=0).gpu_processes == (f"{child.pid} sleep 60",)
        tool.write_text("#!/bin/sh\nexit 9\n")
        assert audit(before, wait=0).is_clean
        child.kill()


def test_a_process_with_gpu_memory_is_found_where_the_driver_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "nvidia-uvm"
    device.touch()
    monkeypatch.setattr(module, "_CUDA", str(device))
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
    before = snapshot()
    with device.open() as file, subprocess.Popen(["/bin/sleep", "60"], stdin=file) as child:
        assert audit(before, wait=0).gpu_processes == (f"{child.pid} sleep 60",)
        child.kill()
    assert not audit(before, wait=0).gpu_processes


@pytest.mark.slow
def test_a_ray_of_our_own_counts_once_it_should_be_gone(tmp_path: Path) -> None:
    """In another process, since this one's Ray is the session's."""
    code = (
        "from cdn_tune.tuning.engine.ray.audit import audit, snapshot\n"
        "from cdn_tune.distributed.cluster import connected\n"
        "before = snapshot()\n"
        "with connected():\n"
        "    during = audit(before, wait=0)\n"
        "after = audit(before)\n"
        "assert any('raylet' in name for name in during.processes), during\n"
        "assert after.is_clean, after\n"
        "print(after)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing left behind")


def test_services_of_ray_itself_are_known_by_name() -> None:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

    assert default_autoscaling_coordinator._AutoscalingCoordinatorActor.__name__ in module._SERVICES
