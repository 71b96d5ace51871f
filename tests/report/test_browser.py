"""The report as a person meets it: opened from a file in headless Chromium."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import override
from cdn_tune.report import serve
from cdn_tune.report.answers import recorded_predictions
from cdn_tune.report.page import Builder
from cdn_tune.report.serve import LiveReport, open_server
from tests.browser import CHROMIUM, browsing
from tests.conftest import TINY
from tests.data.videos.clips import write_fade
from tests.tuning.clusters import wait_for

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(make_run: Any, planted: Path) -> Path:
    experiment = override({**TINY, "data": {**TINY["data"], "root": str(planted)}}, {}, "tiny")
    folder: Path = make_run(experiment, queries=130, evaluated=True, checkpoint=True, objectives=2)
    return folder


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    path = run / "report.html"
    path.write_text(Builder(run).build(1.78e9).html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def films(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of the run that plays and one that does not; others are missing."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("films <&> é")
    shown = {query.video: query.duration for query in recorded_predictions(run / "predictions.jsonl").queries}
    plays, broken = list(shown)[:2]
    write_fade(folder / f"{plays}.mp4", shown[plays], rate=4)
    (folder / f"{broken}.avi").write_bytes(b"not a video" * 100)
    return folder


@pytest.fixture(scope="module")
def filmed(run: Path, films: Path) -> Path:
    """The page of the same run with its videos."""
    path = run / "filmed" / "index.html"
    path.parent.mkdir()
    path.write_text(Builder(run, videos=films, place=path.parent).build(1.78e9).html, encoding="utf-8")
    return path


class Opened:
    """A page with what went wrong on it, and what it asked of others."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def go(self, url: str) -> Any:
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]", timeout=90_000)
        return self.page


@pytest.fixture
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[Opened]:
    width = getattr(request, "param", 1400)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="light")
    context.set_default_timeout(90_000)  # no test depends on how busy the machine is
    yield Opened(context.new_page())
    context.close()


def draw_all(page: Any) -> None:
    """Scrolls to every figure, as a reader does, and waits until it is drawn."""
    plots = page.locator("[data-figure]")
    for at in range(plots.count()):
        plots.nth(at).evaluate("each => each.scrollIntoView()")  # at once: a starved browser never stands still
        plots.nth(at).locator("svg.main-svg").first.wait_for(timeout=90_000)


@pytest.mark.parametrize("opened", [1400, 390], indirect=True, ids=["wide", "phone"])
def test_it_opens_from_a_file_and_asks_nobody(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    draw_all(page)
    assert page.locator(".placeholder").count() == 0
    assert opened.faults == []
    assert [url for url in opened.requests if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


SCROLLED = """async (boxes, share) => {
    boxes.forEach((box) => { box.scrollLeft = share * box.scrollWidth; });
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
    return boxes.map((box) => [
        box.scrollLeft > 1, box.scrollLeft < box.scrollWidth - box.clientWidth - 1,
        box.classList.contains("cut-left"), box.classList.contains("cut-right"),
    ]);
}"""


@pytest.mark.parametrize("opened", [1400, 390], indirect=True, ids=["wide", "phone"])
def test_a_table_that_goes_on_says_so(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    tables = page.locator(".scroll:has(table)")
    seen = set()
    for share in (0, 0.1, 1):
        for left, right, says_left, says_right in tables.evaluate_all(SCROLLED, share):
            assert (says_left, says_right) == (left, right)
            seen.add((left, right))
    assert seen == {(False, False), (False, True), (True, True), (True, False)}


def test_a_leaderboard_of_sixteen_columns_fits(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    cells = page.locator("#board tbody tr").first.locator("td:not(.reason)")
    assert cells.count() == 16
    edge = page.locator(".scroll.tall").evaluate("box => box.getBoundingClientRect().right")
    assert cells.last.evaluate("cell => cell.getBoundingClientRect().right") <= edge


def test_sorting_changes_the_order(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    trials = lambda: [int(text) for text in page.locator("#board tbody td:nth-child(2)").all_inner_texts()]  # noqa: E731
    by_rank = trials()
    head = page.get_by_role("button", name="trial", exact=True)
    head.click()
    assert trials() == sorted(by_rank) != by_rank
    head.press("Enter")
    assert trials() == sorted(by_rank, reverse=True)
    assert page.locator("#board th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="val R1@0.5", exact=True).click()
    values = page.locator("#board tbody td:nth-child(4)").all_inner_texts()
    assert [float(text) for text in values] == sorted(map(float, values), reverse=True)


def test_the_filter_and_the_states_leave_what_fits(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    rows = page.locator("#board tbody tr:visible")
    assert rows.count() == 24
    page.locator("#board-filter").fill("conv COMPLETE")
    texts = rows.all_inner_texts()
    assert 0 < len(texts) < 24
    assert all("conv" in text and "complete" in text for text in texts)
    assert page.locator("#board-count").inner_text() == f"{len(texts)} of 24 trials"
    page.locator("#board-filter").fill("")
    page.get_by_role("checkbox", name="complete").uncheck()
    assert not any("complete" in text for text in rows.all_inner_texts())


def test_picking_a_query_shows_it(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    shown = page.locator("#query")
    page.locator("#query-list button").nth(2).click()
    second = shown.inner_text()
    assert page.locator("#query-list button").nth(2).locator(".text").inner_text() in second
    assert page.locator("#query .lanes .span").count() == 6  # the truth and five answers
    assert page.locator("#query .map canvas").first.evaluate("canvas => canvas.width") == 8
    page.keyboard.press("ArrowDown")
    assert shown.inner_text() != second
    assert page.locator("#query-list button:focus").get_attribute("aria-current") == "true"


def test_the_map_is_read_cell_by_cell(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    page.locator("#query-list button").first.click()
    canvas = page.locator("#query .map canvas").first
    side = canvas.bounding_box()["width"]
    canvas.hover(position={"x": 0.9 * side, "y": 0.1 * side})
    assert "score" in page.locator(".readout").inner_text()
    canvas.hover(position={"x": 0.1 * side, "y": 0.9 * side})
    assert page.locator(".readout").inner_text() == "no proposal"


def test_queries_are_searched_and_chosen_by_kind(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    entries = page.locator("#query-list button")
    assert entries.count() == 100  # the rest on demand
    page.get_by_role("button", name="Show more").click()
    assert entries.count() == 130
    page.locator("#query-kind label", has_text="Worst").click()
    ious = [float(text) for text in page.locator("#query-list .iou").all_inner_texts()]
    assert ious == sorted(ious)
    assert max(ious) < 0.5
    page.locator("#query-kind label", has_text="All").click()
    page.locator("#query-search").fill("(41)")
    assert entries.count() == 1
    assert page.locator("#query-count").inner_text() == "1 of 130 queries"


def test_a_hostile_query_is_only_text(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    page.locator("#query-list button").first.click()
    assert "<script>alert('x')</script>" in page.locator("#query h3").inner_text()
    assert page.locator("#query script, #query img, #query-list script").count() == 0
    assert opened.faults == []


VIDEO = "document.querySelector('#query video')"
NOW = f"{VIDEO}.currentTime"


def test_a_moment_is_played_and_a_frame_leads_there(opened: Opened, filmed: Path) -> None:
    page = opened.go(filmed.as_uri())
    page.locator("#query-list button").nth(2).click()
    wait_for(lambda: page.evaluate(f"{VIDEO}.readyState >= 2"), 60)
    told = page.locator("#query .lanes .told").nth(2).inner_text()  # after those of the frames and the truth
    start, end = told.partition(" s ")[0].split(" \u2013 ")
    first = float(start), float(end)
    wait_for(lambda: page.evaluate(NOW) == pytest.approx(first[0], abs=0.06), 60)  # there it begins
    frames = page.locator("#query .frames button")
    assert frames.count() == 8
    frames.nth(7).click()
    assert page.evaluate(NOW) > 0.9 * page.evaluate(f"{VIDEO}.duration")
    frames.nth(7).press("ArrowLeft")
    assert frames.nth(6).evaluate("frame => frame === document.activeElement")
    page.locator("#query .lanes button.name").nth(1).press("Enter")  # plays the first answer
    wait_for(lambda: page.evaluate(f"!{VIDEO}.paused"), 60)
    page.evaluate(f"{VIDEO}.currentTime = {first[1] + 0.05}")
    wait_for(lambda: page.evaluate(f"{VIDEO}.paused"), 60)  # at its end
    assert not page.evaluate(f"{VIDEO}.ended")
    assert opened.faults == []
    assert {url.partition(":")[0] for url in opened.requests} <= {"file", "data", "blob"}


def test_a_served_page_plays_its_videos(opened: Opened, run: Path, films: Path) -> None:
    with open_server(LiveReport(run, views=0, videos=films)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            page = opened.go(f"http://127.0.0.1:{server.server_address[1]}/")
            page.locator("#query-list button").nth(2).click()
            wait_for(lambda: page.evaluate(f"{VIDEO}.readyState >= 2 && {NOW} > 1"), 60)
            late = 0.8 * page.evaluate(f"{VIDEO}.duration")
            page.evaluate(f"{NOW} = {late}")  # needs a part of the file
            wait_for(lambda: page.evaluate(f"!{VIDEO}.seeking && {NOW} >= {late - 0.3}"), 60)
            assert opened.faults == []
        finally:
            server.shutdown()
            thread.join()


def test_a_video_that_does_not_play_says_so(opened: Opened, filmed: Path) -> None:
    page = opened.go(filmed.as_uri())
    videos = page.locator("#query-list .about").all_inner_texts()
    other = next(at for at, text in enumerate(videos) if text.split(" · ")[0] != videos[0].split(" · ")[0])
    page.locator("#query-list button").nth(other).click()
    page.locator("#query .player p", has_text="does not play here").wait_for()
    assert page.locator("#query .lanes button:enabled").count() == 0
    assert page.locator("#query .lanes .span").count() == 6


def test_a_mistake_leads_to_its_query(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    link = page.locator(".mistakes a").nth(3)
    link.press("Enter")
    assert page.locator("#query h3").inner_text() == link.inner_text()
    assert page.locator(".mistakes ol").first.locator("li").count() == 10


def test_the_theme_follows_the_system_and_the_button(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    assert light != dark
    page.get_by_role("button", name="Dark").click()
    assert ground() == light
    page.get_by_role("button", name="Dark").click()
    assert ground() == dark
    page.emulate_media(color_scheme="light")
    assert ground() == dark  # chosen by hand


def test_a_figures_views_are_switched(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    figure = page.locator("#figure-history")
    figure.evaluate("each => each.scrollIntoView()")
    figure.locator("[data-drawn='by trial']").wait_for()
    figure.locator("label", has_text="by GPU-hours").click()
    figure.locator("[data-drawn='by GPU-hours']").wait_for()
    assert figure.locator(".xtitle").inner_html() == "GPU-hours"


@pytest.mark.parametrize(
    ("scheme", "rules"),
    [pytest.param("light", None, marks=pytest.mark.slow), ("dark", ["color-contrast"])],
    ids=["everything", "dark colours"],
)
def test_axe_finds_nothing_serious(opened: Opened, filmed: Path, scheme: str, rules: list[str] | None) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    opened.page.emulate_media(color_scheme=scheme)
    page = opened.go(filmed.as_uri())
    assert page.locator("#query .frames button").count() == 8
    if rules is None:
        draw_all(page)
    page.locator("details").first.evaluate("details => { details.open = true; }")
    found = axe.run(page, options={"runOnly": rules} if rules else None).response
    assert found["passes"]
    grave = [item for item in found["violations"] if item["impact"] in ("serious", "critical")]
    assert [f"{item['id']}: {item['nodes'][0]['html'][:200]}" for item in grave] == []


def test_a_served_page_loads_itself_anew(
    opened: Opened, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_PAUSE", 0.0)
    monkeypatch.setattr(serve, "_SHARE", 0.0)
    live = tmp_path / "run"
    shutil.copytree(run, live, ignore=shutil.ignore_patterns("*.html"))
    with open_server(LiveReport(live, views=0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            page = opened.go(f"http://127.0.0.1:{server.server_address[1]}/")
            page.locator("#board-filter").fill("pruned")
            (live / "evaluation.json").write_text('{"metrics": {"mIoU": 0.4321}, "looks": 1}')
            page.locator(".cards", has_text="43.21").wait_for(timeout=90_000)
            page.wait_for_selector("html[data-ready]")
            assert page.locator("#board-filter").input_value() == "pruned"  # what was chosen stays
            assert opened.faults == []
        finally:
            server.shutdown()
            thread.join()


def test_it_prints(opened: Opened, file: Path) -> None:
    page = opened.go(file.as_uri())
    # the browser's own way to wait asks the page to evaluate text, which its policy forbids
    wait_for(lambda: page.evaluate("window.Plotly !== undefined"), 60)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # a print does not wait: all is drawn when this returns
    widths = page.evaluate(
        "[...document.querySelectorAll('[data-figure] svg.main-svg')].map((svg) => svg.width.baseVal.value)"
    )
    assert set(widths) == {690}
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 900})  # A4 between its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    assert not page.locator(".bar").is_visible()
    assert not page.locator(".controls").is_visible()
    assert page.locator("#board tbody tr").last.is_visible()
    assert len(page.pdf()) > 20_000
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1400, "height": 900})
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    drawn = "document.querySelector('[data-figure] svg.main-svg').width.baseVal.value"
    wait_for(lambda: page.evaluate(drawn) > 1000, 60)
