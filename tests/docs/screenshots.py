"""`make screenshots`: makes docs/images anew from real searches, of `cdn-tune demo`, and prints what they printed.

README's sample output is the end of what the first prints: after a run, the one is to be taken over with the other.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import browsing

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = {"width": 1400, "height": 900}


def shoot(page: Any, name: str) -> None:
    """Saves what the page shows, with 256 colours."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(256).save(IMAGES / f"{name}.png", optimize=True)
    sys.stdout.write(f"{IMAGES / name}.png\n")


def open_report(browser: Any, run: Path) -> Any:
    """Opens a run's report."""
    page = browser.new_page(viewport=SIZE, color_scheme="light")
    page.goto((run / "report" / "index.html").absolute().as_uri())
    page.wait_for_selector("html[data-ready]")
    return page


def shoot_queries(page: Any, name: str) -> None:
    """Saves the report's query browser, with one of the best answers."""
    page.evaluate("document.querySelector('#queries').scrollIntoView()")
    page.locator("#query-kind label", has_text="Best").click()
    page.locator("#query-list button").nth(1).click()
    page.locator(".score-map, canvas").first.wait_for()
    page.wait_for_timeout(1000)  # a video shows its first frame a while later
    shoot(page, name)


def main() -> None:
    """Searches, on planted data and on drawn videos, and saves what the reports show."""
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        for options in ((), ("--video",)):
            subprocess.run([sys.executable, "-m", "cdn_tune", "demo", *options], cwd=folder, check=True)
        runs = Path(folder) / "runs"
        page = open_report(browser, runs / "demo")
        shoot(page, "report-top")
        shoot_queries(page, "report-queries")
        shoot_queries(open_report(browser, runs / "demo-video"), "report-videos")


if __name__ == "__main__":
    main()
