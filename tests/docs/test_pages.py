"""Pages can be read as they are, on GitHub too: plain Markdown, short, with links that lead somewhere."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, fences, name_of

LONGEST = 200
NEAREST = 2  # clicks from the README to an answer
README = ROOT / "README.md"
TROUBLES = DOCS / "troubleshooting.md"
_LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
_PLACE = re.compile(r"%[sdg]|\{\}")

# What a newcomer asks: the links to follow, from the README on, and words of the answer.
QUESTIONS = {
    "install": (["docs/install.md"], "pip install"),
    "GPU": (["docs/howto/simulate.md"], "--gpus 0.25"),
    "own data": (["docs/howto/data.md"], "train/<class>/"),
    "own model": (["docs/howto/any-model.md"], "elastic(model"),
    "which method": (["docs/explain/methods.md#which-method"], "## Which method?"),
    "resume": (["docs/howto/runs.md"], "heterofl run --resume"),
    "cluster": (["docs/howto/simulate.md", "sweeps.md"], "Slurm"),
    "deployment": (["docs/howto/deployment.md"], "flower-superlink"),
    "what the numbers mean": (["docs/howto/runs.md#what-the-numbers-mean"], "`local-accuracy`"),
    "cite": (["CITATION.cff"], "ICLR 2021"),
}


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    for block in fences(page):
        text = text.replace(block.code, "")
    return text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_is_short_and_needs_no_building(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert [block.line for block in fences(page) if block.language.startswith("{")] == []
    assert re.findall(r"\{(?:eval-rst|include|ref|doc|py:\w+)\}", prose(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_says_that_it_is_about_federated_learning(page):
    if page not in (DOCS / "changelog.md", README):
        _, _, text = page.read_text(encoding="utf-8").partition("\n\n")
        first = re.split(r"\n\n|\n#", text)[0]
        assert re.search(r"federat", first, re.IGNORECASE), first


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert [link for link in links(page) if not leads_somewhere(page, link)] == []


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


def test_every_page_is_in_the_contents():
    listed = {(DOCS / link).resolve() for link in links(DOCS / "index.md")}
    listed |= {(DOCS / "reference" / link).resolve() for link in links(DOCS / "reference" / "api.md")}
    listed = {path.parent / path.name.partition("#")[0] for path in listed}
    assert [name_of(page) for page in PAGES if page not in {*listed, README, DOCS / "index.md"}] == []


@pytest.mark.parametrize("question", QUESTIONS)
def test_newcomers_question_is_answered_within_two_clicks(question):
    clicks, answer = QUESTIONS[question]
    assert len(clicks) <= NEAREST
    page = README
    for link in clicks:
        assert link in links(page)
        page = (page.parent / link.partition("#")[0]).resolve()
    assert answer in page.read_text(encoding="utf-8")


def test_every_changed_line_in_the_readme_is_in_the_tested_diff():
    (shown,) = re.findall(r"```diff\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    changed = [line for line in shown.splitlines() if line.startswith(("+", "-"))]
    tested = (DOCS / "dropin.diff").read_text(encoding="utf-8").splitlines()
    assert len(changed) > 5
    assert [line for line in changed if line not in tested] == []


def test_quoted_errors_occur_in_the_code():
    said = TROUBLES.read_text(encoding="utf-8").partition("## Without a message")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", said, re.MULTILINE)
    known = "\n".join(texts())
    assert len(quoted) >= 35
    assert [error for error in quoted if error not in known] == []


@cache
def texts() -> list[str]:
    """Return every text of the package, with an ellipsis in place of what differs."""
    found = []
    for path in sorted((ROOT / "heterofl_flwr").rglob("*.py")):
        found += [_PLACE.sub("…", text) for text in texts_in(ast.parse(path.read_text(encoding="utf-8")))]
    return found


def texts_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
