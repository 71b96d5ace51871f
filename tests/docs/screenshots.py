"""`make screenshots`: makes docs/images anew from a real search, that of `cdn-tune demo`, and prints what it printed.

The end of what it prints is README's sample output: after a run, the one is to be taken over with the other.
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


def main() -> None:
    """Searches, opens the report, and saves its top and its queries."""
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        subprocess.run([sys.executable, "-m", "cdn_tune", "demo"], cwd=folder, check=True)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto((Path(folder) / "runs" / "demo" / "report" / "index.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        shoot(page, "report-top")
        page.evaluate("document.querySelector('#queries').scrollIntoView()")
        page.locator("#query-kind label", has_text="Best").click()
        page.locator("#query-list button").nth(1).click()
        page.locator(".score-map, canvas").first.wait_for()
        shoot(page, "report-queries")


if __name__ == "__main__":
    main()
