"""How Sphinx builds the site from plain Markdown; ``make docs`` runs it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from heterofl_flwr import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent

project = "heterofl-flwr"
author = "the heterofl-flwr authors"
version = release = __version__

extensions = ["myst_nb"]
templates_path: list[str] = []

myst_heading_anchors = 4
smartquotes = False  # '' is the value of some settings

# The notebook is stored with its outputs; a test runs it.
nb_execution_mode = "off"
nb_merge_streams = True

html_theme = "furo"
html_title = f"heterofl-flwr {__version__}"
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def _on_read(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Make tables of contents from the lists of the first page."""
    if docname == "index":
        source[0] += _contents(source[0])


def _contents(page: str) -> str:
    sections = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    found = (
        (title, re.findall(r"^- \[[^]]+\]\((.+)\.(?:md|ipynb)\)", text, re.MULTILINE))
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    )
    return "".join(_toctree(title, pages) for title, pages in found if pages)


def _toctree(title: str, pages: list[str]) -> str:
    lines = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"


def setup(app: "Sphinx") -> None:
    """Register with Sphinx."""
    app.connect("source-read", _on_read)
