"""Contact sheets: the moments stand at their times, and files of others stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdn_tune.data.videos.contact_sheet import Answers, check_sheet, middles, time_text, write_sheet
from cdn_tune.data.videos.decode import VideoFile
from cdn_tune.errors import DataError
from tests.data.videos.clips import write_video

BEST = (10, 125, 79)
QUERY = "a person opens the door"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "vidéo.mp4", [at / 5 for at in range(50)])


def draw(video: Path, answers: Sequence[Answers], path: Path) -> np.ndarray:
    with VideoFile(video) as opened:
        write_sheet(opened, answers, path)
    with Image.open(path) as image:
        return np.asarray(image)


def bars(sheet: np.ndarray) -> list[tuple[int, int]]:
    """First and last column of each bar of a best moment, from top to bottom."""
    rows = (sheet == BEST).all(axis=2)
    wide = np.flatnonzero(rows.sum(axis=1) > 40)
    tops = [row for row in wide if row - 1 not in wide]
    return [(int(at[0]), int(at[-1])) for at in (np.flatnonzero(rows[top + 7]) for top in tops)]


def test_the_best_moment_is_marked_at_its_place_on_the_timeline(video: Path, tmp_path: Path) -> None:
    sheet = draw(
        video, [Answers(QUERY, [(2.0, 4.0, 0.9), (5, 6, 0.3)]), Answers("b", [(7.5, 10, 0.2)])], tmp_path / "s.png"
    )
    left, right = 28, sheet.shape[1] - 28
    wide = right - left
    with VideoFile(video) as opened:
        scale = wide / opened.duration
    assert bars(sheet) == [
        pytest.approx((left + 2 * scale, left + 4 * scale), abs=2),
        pytest.approx((left + 7.5 * scale, right), abs=2),
    ]


def test_frames_stand_above_their_times(video: Path, tmp_path: Path) -> None:
    sheet = draw(video, [], tmp_path / "s.png")
    cell = (sheet.shape[1] - 2 * 28) / 8
    shown = [int(sheet[140, round(28 + (at + 0.9) * cell)].mean()) for at in range(8)]  # right and low: the grey part
    with VideoFile(video) as opened:
        times = [opened.duration * (at + 0.5) / 8 for at in range(8)]
        wanted = [int(pixels[-1, -1].mean()) for pixels in opened.frames(times)]
    assert shown == pytest.approx(wanted, abs=3)
    assert len(set(shown)) > 4


def test_each_frame_is_from_the_middle_of_its_part() -> None:
    assert middles(2.0, 6.0, 4) == [2.5, 3.5, 4.5, 5.5]
    assert middles(3.0, 3.0, 2) == [3.0, 3.0]


@pytest.mark.parametrize(
    "answers",
    [
        Answers("", []),
        Answers("word " * 500, [(0.0, 10.0, 0.5)]),
        Answers("x" * 5000, [(3.0, 3.0, float("1e300"))]),
        Answers("鳥 \x1b[31m", [(9.9, 99.0, -1.0)] * 30),
    ],
    ids=["nothing found", "a long query", "no spaces, no length", "beyond the end, many"],
)
def test_any_answers_fit(video: Path, tmp_path: Path, answers: Answers) -> None:
    sheet = draw(video, [answers], tmp_path / "s.png")
    assert sheet.shape[0] < 800
    assert (sheet[:, :28] == 255).all()
    assert (sheet[:, -27:] == 255).all()


def test_an_upright_video_fits_its_cells(tmp_path: Path) -> None:
    tall = write_video(tmp_path / "tall.mp4", [0, 0.5, 1.0], width=48, height=480)
    assert draw(tall, [Answers(QUERY, [(0, 1, 0.5)])], tmp_path / "s.png").shape[0] < 700


def test_files_of_others_stay_and_an_own_sheet_is_replaced(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.png"
    draw(video, [], path)
    check_sheet(path, 1)
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "folder.png").mkdir()
    for name in ("photo.png", "text.png", "folder.png"):
        with pytest.raises(DataError, match="exists and is no contact sheet"):
            check_sheet(tmp_path / name, 1)


@pytest.mark.parametrize(
    ("name", "queries", "why"),
    [("s.jpg", 1, r"name a file such as s\.png"), ("no/s.png", 1, "no folder"), ("s.png", 51, "room for 50")],
)
def test_refused(tmp_path: Path, name: str, queries: int, why: str) -> None:
    with pytest.raises(DataError, match=why):
        check_sheet(tmp_path / name, queries)


def test_times_as_people_write_them() -> None:
    assert [time_text(each) for each in (7.46, 59.99, 67.5, 3727.5, -1)] == [
        "7.5 s",
        "1:00.0",
        "1:07.5",
        "1:02:07.5",
        "0.0 s",
    ]
