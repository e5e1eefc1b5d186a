"""The site builds without a warning, and loads nothing from elsewhere."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site as ``make docs`` does."""
    out = tmp_path_factory.mktemp("site") / "html"
    options = ["-W", "--keep-going", "-q", "-E", "-d", str(out.parent / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


class Loaded(HTMLParser):
    """What a page loads: pictures, styles and scripts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        target = values.get("href") or values.get("src")
        if target and tag != "a":
            self.sources.append(target)


def test_every_page_is_there(site):
    for page in PAGES[1:]:
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file()
    assert (site / "notebooks" / "quickstart.html").is_file()


def test_pages_load_nothing_from_the_network(site):
    loaded = {source for page in site.rglob("*.html") for source in Loaded(page).sources}
    assert {source for source in loaded if urlsplit(source).netloc} == set()
