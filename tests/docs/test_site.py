"""The site: it builds, says what is wrong with a page, and works from a folder in a browser, for everybody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, browsing
from tests.conftest import ROOT

pytest.importorskip("zensical")  # it has no release for Python 3.10

from tests.docs.__main__ import build, navigation, strangers

NAV = '[project]\nsite_name = "x"\nnav = ["index.md", "reference/commands.md"]\n'
SCHEMES, WIDTHS = ("light", "dark"), (390, 1400)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built beside the checkout."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "cdn_tune").symlink_to(ROOT / "cdn_tune")
    (folder / "zensical.toml").write_bytes((ROOT / "zensical.toml").read_bytes())
    assert build(folder / "zensical.toml") == 0
    return folder / "site"


def test_it_builds_and_no_page_is_empty(site: Path) -> None:
    assert strangers(ROOT / "zensical.toml") == []
    assert "cdn-tune search start" in (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "cdn_tune.load" in (site / "reference" / "python.html").read_text(encoding="utf-8")
    outside = [path for path in site.rglob("*.html") if 'src="http' in path.read_text(encoding="utf-8")]
    assert outside == []


def test_what_is_wrong_is_told_with_page_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "zensical.toml").write_text(NAV, encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[gone](gone.md) [no anchor](#b)\n", encoding="utf-8")
    assert build(tmp_path / "zensical.toml") == 1
    said = capsys.readouterr().err
    assert said.count("index.md:3:") == 2
    assert "page does not exist" in said
    assert "anchor does not exist" in said
    assert "Traceback" not in said
    (tmp_path / "docs" / "stray.md").write_text("# Stray\n", encoding="utf-8")
    assert build(tmp_path / "zensical.toml") == 1
    assert capsys.readouterr().err.startswith("docs/stray.md:1: is not in the navigation")
    (tmp_path / "docs" / "stray.md").unlink()
    (tmp_path / "zensical.toml").write_text(NAV.replace("index.md", "home.md"), encoding="utf-8")
    assert build(tmp_path / "zensical.toml") == 1
    assert "zensical.toml:3: home.md: no such page" in capsys.readouterr().err


def pages() -> list[str]:
    import tomllib

    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    return [page.replace(".md", ".html") for page in navigation(nav)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    pytest.importorskip("playwright.sync_api")
    with browsing() as browser:
        yield browser


def opened(browser: Any, url: str, width: int, scheme: str) -> tuple[Any, list[str]]:
    """A page and what went wrong on it: errors, and requests to others."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(90_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    page.goto(url)
    return page, faults


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_opens_from_a_folder_and_axe_is_content(
    site: Path, browser: Any, width: int, scheme: str, tmp_path: Path
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    wrong = []
    for name in pages():
        page, faults = opened(browser, (site / name).as_uri(), width, scheme)
        wrong += [f"{name}: {fault}" for fault in faults]
        if page.evaluate("document.documentElement.scrollWidth") > width:
            wrong.append(f"{name}: wider than the window")
        for item in axe.run(page).response["violations"]:
            if item["impact"] in ("serious", "critical"):
                wrong += [f"{name}: {item['id']}: {node['html'][:150]}" for node in item["nodes"][:3]]
        page.screenshot(path=str(tmp_path / f"{name.replace('/', '-')}.png"))
        page.context.close()
    assert wrong == []


@pytest.mark.slow
def test_search_works_from_a_folder(site: Path, browser: Any) -> None:
    page, faults = opened(browser, (site / "index.html").as_uri(), 1400, "light")
    page.get_by_role("button", name="Search").click()
    page.get_by_placeholder("Search").fill("hyperband")
    page.get_by_text("When trials are stopped early").wait_for()
    assert faults == []
    page.context.close()
