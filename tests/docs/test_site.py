"""The site builds without a warning, and its links lead somewhere."""

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site as ``make docs`` does, but for the notebook, which has a test of its own."""
    out = tmp_path_factory.mktemp("site") / "html"
    options = ["-W", "--keep-going", "-q", "-E", "-d", str(out.parent / "doctrees"), "-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


class Links(HTMLParser):
    """The ids of a page, and what it links to or loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.update(filter(None, [values.get("id"), values.get("name") if tag == "a" else None]))
        target = values.get("href") or values.get("src")
        if target:
            (self.targets if tag == "a" else self.loaded).append(target)


@pytest.fixture(scope="module")
def links(site) -> dict[Path, Links]:
    return {page: Links(page) for page in site.rglob("*.html")}


def test_every_page_is_there(site):
    for page in PAGES[1:]:
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file()
    assert (site / "notebooks" / "quickstart.html").is_file()


def test_internal_links_lead_somewhere(links):
    assert sorted(broken(links)) == []


def broken(links: dict[Path, Links]) -> Iterator[str]:
    for page, own in links.items():
        for target in own.targets + own.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            ids = links[path].ids if path in links else set()
            if not path.is_file() or (parts.fragment and unquote(parts.fragment) not in ids):
                yield f"{page.name}: {target}"


def test_pages_load_nothing_from_the_network(links):
    assert {target for own in links.values() for target in own.loaded if urlsplit(target).netloc} == set()
