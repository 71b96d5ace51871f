"""The contact sheet: one picture of a video's frames along its timeline, and of the moments that answer queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cdn_tune.data.files import written_whole
from cdn_tune.data.videos.decode import VideoFile
from cdn_tune.errors import DataError

MOST_QUERIES = 50  # of a sheet, so that its height is bounded
MOST_MARKED = 5  # moments of a query

_FRAMES = 8  # of a strip
_MARGIN, _GAP, _CELL = 28, 6, 144  # pixels; a strip is as wide as the timeline, so that frames lie above their times
_WIDTH = 2 * _MARGIN + _FRAMES * _CELL
_HIGHEST = 160  # pixels of a frame; an upright one is narrower than its cell
_LANE, _BAR, _LINE = 24, 14, 30
_MOST_LINES = 3  # of a query
_PAPER, _INK, _DIM, _GROUND = "#ffffff", "#1b1f24", "#667079", "#e6e9ec"
_BEST, _OTHER = "#0a7d4f", "#94b8a8"
_FONTS = ("DejaVuSans.ttf", "Arial.ttf")  # of more scripts than Pillow's own
_FONTS_BOLD = ("DejaVuSans-Bold.ttf", "Arial Bold.ttf")
_SOFTWARE = "cdn-tune predict --sheet"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Answers:
    """A query, and the moments that answer it: (start, end, score), in seconds, best first."""

    query: str
    moments: Sequence[tuple[float, float, float]]


def check_sheet(path: Path, queries: int) -> None:
    """Checks that a contact sheet of so many queries may be written to a path.

    Raises:
        DataError: If it is no ``.png``, its folder does not exist, or it is a file that is no contact sheet; or if
            there are more than `MOST_QUERIES`.
    """
    if path.suffix.lower() != ".png":
        raise DataError(f"--sheet {path}: is written as PNG; name a file such as {path.with_suffix('.png').name}")
    if not path.parent.is_dir():
        raise DataError(f"--sheet {path}: no folder {path.parent}; create it, or name another")
    if queries > MOST_QUERIES:
        raise DataError(f"--sheet {path}: {queries} queries; a sheet has room for {MOST_QUERIES}, ask fewer at once")
    if path.is_dir() or (path.exists() and not _is_sheet(path)):
        raise DataError(f"--sheet {path}: exists and is no contact sheet of cdn-tune; name another file")


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == _SOFTWARE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def write_sheet(video: VideoFile, answers: Sequence[Answers], path: Path) -> None:
    """Writes a contact sheet: the video's frames over its timeline; per query its moments, and frames of the best one.

    Args:
        video: Open; it is decoded once, from its beginning to its end.
        answers: Of each, the best `MOST_MARKED` moments are marked.
        path: Where to; `check_sheet` is called first.

    Raises:
        DataError: If the video cannot be decoded, or the file cannot be written.
    """
    strips = [middles(0.0, video.duration, _FRAMES)]
    strips += [middles(*each.moments[0][:2], _FRAMES) if each.moments else [] for each in answers]
    frames = _decode(video, sorted({time for strip in strips for time in strip}))
    sections = [_overview(video, strips[0], frames)]
    sections += [_answer(video, each, strip, frames) for each, strip in zip(answers, strips[1:], strict=True)]
    sheet = Image.new("RGB", (_WIDTH, sum(each.height for each in sections) + _MARGIN), _PAPER)
    top = 0
    for section in sections:
        sheet.paste(section, (0, top))
        top += section.height
    about = PngInfo()
    about.add_text("Software", _SOFTWARE)
    try:
        with written_whole(path) as partial:
            sheet.save(partial, format="PNG", pnginfo=about)
    except OSError as error:
        raise DataError(
            f"--sheet {path}: cannot be written ({error.strerror or error}); choose another place"
        ) from None


def middles(start: float, end: float, count: int) -> list[float]:
    """Returns the times of a strip's frames: the middles of equal parts, so that each stands for the part under it."""
    return [start + (end - start) * (part + 0.5) / count for part in range(count)]


def time_text(seconds: float) -> str:
    """Returns a place in a video as people write it: ``7.5 s``, ``1:07.5``, ``1:02:07.5``."""
    tenths = round(max(seconds, 0.0) * 10)
    minutes, rest = divmod(tenths, 600)
    if not minutes:
        return f"{rest / 10:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest / 10:04.1f}"


def _decode(video: VideoFile, times: Sequence[float]) -> dict[float, Image.Image]:
    """Returns the frames at some times, each as large as fits into a cell."""
    found = {}
    inside = [min(time, video.duration) for time in times]
    for time, frame in zip(times, video.frames(inside, size=_HIGHEST), strict=True):
        image = Image.fromarray(frame)
        image.thumbnail((_CELL - _GAP, _HIGHEST), Image.Resampling.LANCZOS)
        found[time] = image
    return found


def _overview(video: VideoFile, times: Sequence[float], frames: dict[float, Image.Image]) -> Image.Image:
    """Returns the head of a sheet: the video's name, and its frames over a timeline with their times."""
    name, about = video.path.name, f"{time_text(video.duration)}, {video.width}x{video.height}"
    high = _height(times, frames)
    section = Image.new("RGB", (_WIDTH, _MARGIN + 2 * _LINE + high + _LANE), _PAPER)
    draw = ImageDraw.Draw(section)
    (title,) = _wrapped(draw, name, _font(20, bold=True), 1)
    draw.text((_MARGIN, _MARGIN), title, _INK, _font(20, bold=True))
    draw.text((_WIDTH - _MARGIN, _MARGIN + 4), about, _DIM, _font(15), anchor="ra")
    _draw_strip(section, _MARGIN + _LINE + 10, times, frames, [])
    return section


def _answer(
    video: VideoFile, answers: Answers, times: Sequence[float], frames: dict[float, Image.Image]
) -> Image.Image:
    """Returns the part of one query: it, its moments on the timeline, and frames of the best one."""
    font, small = _font(20, bold=True), _font(14)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = _wrapped(measure, answers.query, font, _MOST_LINES)
    marked = answers.moments[:MOST_MARKED]
    high = _height(times, frames)
    lanes = _MARGIN + _LINE * len(lines) + 8
    strip = lanes + _LANE * max(len(marked), 1) + 12
    section = Image.new("RGB", (_WIDTH, strip + high + _LANE + 10), _PAPER)
    draw = ImageDraw.Draw(section)
    draw.line((_MARGIN, 8, _WIDTH - _MARGIN, 8), _GROUND, 2)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN - 4 + number * _LINE), line, _INK, font)
    if not marked:
        draw.text((_MARGIN, lanes), "no moment", _DIM, small)
    for rank, (start, end, score) in enumerate(marked, start=1):
        top = lanes + (rank - 1) * _LANE
        colour = _BEST if rank == 1 else _OTHER
        draw.rounded_rectangle((_MARGIN, top, _WIDTH - _MARGIN, top + _BAR), 4, _GROUND)
        left, right = (_MARGIN + _place(video, time) * (_WIDTH - 2 * _MARGIN) for time in (start, end))
        left = min(left, _WIDTH - _MARGIN - 4)  # so that a moment of no length is seen
        draw.rounded_rectangle((left, top, max(right, left + 4), top + _BAR), 4, colour)
        text = f"{rank}.  {time_text(start)} to {time_text(end)}   score {score:.3f}"
        _label(draw, text, left, right, top, small, _PAPER if rank == 1 else _INK)
    if times:
        _draw_strip(section, strip, times, frames, [0.0, 1.0])
    return section


def _place(video: VideoFile, time: float) -> float:
    return min(max(time / video.duration, 0.0), 1.0)


def _label(
    draw: ImageDraw.ImageDraw, text: str, left: float, right: float, top: float, font: Font, inside: str
) -> None:
    """Writes a bar's label beside it, on the side that has room; on it where neither has."""
    wide, middle = draw.textlength(text, font), top + _BAR / 2
    if right + 8 + wide <= _WIDTH - _MARGIN:
        draw.text((right + 8, middle), text, _INK, font, anchor="lm")
    elif left - 8 - wide >= _MARGIN:
        draw.text((left - 8, middle), text, _INK, font, anchor="rm")
    else:
        draw.text((max(left, _MARGIN) + 8, middle), text, inside, font, anchor="lm")


def _height(times: Sequence[float], frames: dict[float, Image.Image]) -> int:
    return max((frames[time].height for time in times), default=0)


def _draw_strip(
    section: Image.Image, top: int, times: Sequence[float], frames: dict[float, Image.Image], marked: Sequence[float]
) -> None:
    """Puts frames side by side, each with its time; `marked` ones have a line in the colour of the best moment."""
    draw, high, font = ImageDraw.Draw(section), _height(times, frames), _font(13)
    for at, time in enumerate(times):
        image = frames[time]
        left = _MARGIN + at * _CELL + (_CELL - image.width) // 2
        section.paste(image, (left, top + (high - image.height) // 2))
        middle = _MARGIN + at * _CELL + _CELL // 2
        draw.text((middle, top + high + 6), time_text(time), _BEST if marked else _DIM, font, anchor="ma")


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Font, most: int) -> list[str]:
    """Returns a text in lines that fit the sheet; what does not fit into the last one is left out, with dots."""
    room, lines = _WIDTH - 2 * _MARGIN, [""]
    for word in text[:1000].split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line] or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} ..."]
    return [_cut(draw, line, font, room) for line in lines]


def _cut(draw: ImageDraw.ImageDraw, line: str, font: Font, room: float) -> str:
    """Returns a line as far as it fits."""
    if draw.textlength(line, font) <= room:
        return line
    while line and draw.textlength(f"{line}...", font) > room:
        line = line[:-1]
    return f"{line}..."


def _font(size: int, bold: bool = False) -> Font:
    for name in _FONTS_BOLD if bold else _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
