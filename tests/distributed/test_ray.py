"""The environment that Ray starts in."""

import os
from pathlib import Path

from cdn_tune.distributed.ray import short_folder


def test_rays_sockets_fit_behind_the_folder_for_temporary_files(tmp_path: Path) -> None:
    """``AF_UNIX path length cannot exceed 107 bytes``: a cluster's job has a long TMPDIR of its own."""
    longest = "/" + "t" * 34
    socket = f"{longest}/ray/session_2026-11-29_01-37-27_123456_4194304/sockets/plasma_store.1"
    assert len(socket) <= 107
    assert short_folder(longest) == longest
    assert short_folder(longest + "t", [str(tmp_path / "absent"), "/tmp"]) == "/tmp"  # noqa: S108
    assert short_folder("/ü" * 17, ["/tmp"]) == "/tmp"  # noqa: S108 - bytes count
    assert short_folder(longest + "t", [str(tmp_path / "absent")]) == longest + "t"
    assert os.environ["RAY_TMPDIR"]
