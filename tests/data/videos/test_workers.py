"""Extraction in processes: those that are killed, by a video or with the command, and what is left of their work."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import pytest
import torch

from cdn_tune.data.videos.workers import Recipe, run_workers
from tests.data.videos.clips import keep_or_die, write_video

pytestmark = pytest.mark.slow

TIMES = [i / 10 for i in range(20)]
COMMAND = (sys.executable, "-m", "cdn_tune", "data", "extract")


def test_a_video_that_ends_its_process_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / f"{name}.mp4", TIMES) for name in ("a", "b", "c", "d", "e", "deadly")]
    failed: dict[Path, str] = {}
    done: dict[Path, float] = {}
    recipe = Recipe("efficientnet_lite0", None, 1, 2.0, 1, 1, 1)
    devices = [torch.device("cpu")] * 2
    run_workers(videos, recipe, devices, partial(keep_or_die, tmp_path), done.__setitem__, failed.__setitem__)
    assert tmp_path / "deadly.mp4" in failed
    assert all("the process that read it ended by signal 9 (SIGKILL)" in reason for reason in failed.values())
    kept = {path.stem for path in tmp_path.glob("*.rows")}
    assert kept == {path.stem for path in videos} - {path.stem for path in failed}


def test_a_killed_command_leaves_no_process_and_is_gone_on_with(tmp_path: Path) -> None:
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", [i / 10 for i in range(100)])
    out = tmp_path / "out.hdf5"
    arguments = [str(tmp_path), str(out), "--backbone", "efficientnet_lite0", "--fps", "4", "--workers", "2"]
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL)
    staging = tmp_path / ".out.hdf5.extracting"
    while len(list(staging.glob("*.npy"))) < 1:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not out.exists()
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True)
    computed = int(done.stdout.partition("size 1280, ")[2].split()[0])
    assert 0 < computed < 5
    with h5py.File(out) as file:
        assert {file[name].shape for name in file} == {(40, 1280)}
        assert len(file) == 5
    assert not staging.exists()


def test_an_interrupt_while_processes_start_is_one_line(tmp_path: Path) -> None:
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", [i / 10 for i in range(100)])
    arguments = [str(tmp_path), str(tmp_path / "out.hdf5"), "--backbone", "efficientnet_lite0", "--workers", "2"]
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 3:  # two, and one of multiprocessing that tracks resources
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "the same command goes on with what is left" in " ".join(said.split())
