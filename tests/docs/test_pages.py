"""Pages can be read as they are, on GitHub too: plain Markdown, short, with links that lead somewhere."""

import re
from functools import cache
from pathlib import Path

import pytest

from heterofl_flwr.app.server_app import RESUMED
from tests.docs.pages import DOCS, PAGES, ROOT, fences, name_of

README = ROOT / "README.md"
OTHERS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINKED = [*PAGES, *(ROOT / name for name in OTHERS), *sorted((ROOT / "results").glob("*.md"))]
_LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
_HEAD = re.compile(r"\|.*\n\|[ :|-]+\|(?:\n|$)")
_FILE = re.compile(r"`((?:conf|docs|heterofl_flwr|hydra_plugins|results|simulations|tests)/[\w/.-]+)`")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    for block in fences(page):
        text = text.replace(block.code, "")
    return text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_needs_no_building(page):
    assert [block.line for block in fences(page) if block.language.startswith("{")] == []
    assert re.findall(r"\{(?:eval-rst|include|ref|doc|py:\w+)\}", prose(page)) == []


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    assert [link for link in links(page) if not leads_somewhere(page, link)] == []


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_table_has_a_head(page):
    """Rows below an empty line are shown as text."""
    tables = re.findall(r"^\|.*(?:\n\|.*)*", prose(page), re.MULTILINE)
    assert [table for table in tables if not _HEAD.match(table)] == []


def links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(prose(page)) if not link.startswith(("http://", "https://"))]


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_files_that_a_page_names_exist(page):
    assert [path for path in _FILE.findall(prose(page)) if not (ROOT / path).exists()] == []


def test_every_page_is_in_the_contents():
    listed = {(DOCS / link).resolve() for link in links(DOCS / "index.md")}
    listed = {path.parent / path.name.partition("#")[0] for path in listed}
    assert [name_of(page) for page in PAGES if page not in {*listed, README, DOCS / "index.md"}] == []


def test_settings_that_may_change_on_resume_are_named():
    _, _, section = (DOCS / "howto" / "deployment.md").read_text(encoding="utf-8").partition("### Change a run")
    section, _, _ = section.partition("All others must stay")
    assert set(re.findall(r"`(\w+[.-][\w.-]+)\b", section)) == set(RESUMED["may_differ"])


def test_every_changed_line_in_the_readme_is_in_the_tested_diff():
    (shown,) = re.findall(r"```diff\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    changed = [line for line in shown.splitlines() if line.startswith(("+", "-"))]
    tested = (DOCS / "dropin.diff").read_text(encoding="utf-8").splitlines()
    assert len(changed) > 5
    assert [line for line in changed if line not in tested] == []
