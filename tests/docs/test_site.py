"""The site builds without a warning, and loads nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.docs.pages import DOCS, PAGES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site as ``make docs`` does."""
    out = tmp_path_factory.mktemp("site") / "html"
    options = ["-W", "--keep-going", "-q", "-E", "-d", str(out.parent / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_every_page_is_there(site):
    for page in PAGES[1:]:
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file()
    assert (site / "notebooks" / "quickstart.html").is_file()


@pytest.mark.slow
def test_pages_load_nothing_from_the_network(site):
    loads = re.compile(
        r"""<(?!a\s)\w+\s[^>]*\b(?:href|src)=["'](?:\w+:)?//[^>]*>"""
    )  # pictures, styles and scripts, no links
    assert [tag for page in site.rglob("*.html") for tag in loads.findall(page.read_text(encoding="utf-8"))] == []


NOTEBOOK = DOCS / "notebooks" / "quickstart.ipynb"

# In a process of its own: the notebook's machinery warns of this and that, and in this one warnings are errors.
RUN = """
import sys, nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
path = {"metadata": {"path": sys.argv[2]}}
NotebookClient(notebook, timeout=600, startup_timeout=600, kernel_name="python3", resources=path).execute()
nbformat.write(notebook, sys.argv[3])
"""


def read_outputs(path: Path) -> list[tuple[list[str], str]]:
    """Return the kinds of data and the printed text of each cell, without accuracies, which differ between machines."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (
            [kind for output in outputs for kind in output.get("data", {})],
            re.sub(r"[\d.]+%", "", "".join(output.get("text", "") for output in outputs)),
        )
        for outputs in shown
    ]


@pytest.mark.release
def test_notebook_shows_what_it_makes(tmp_path):
    done = tmp_path / "done.ipynb"
    command = [sys.executable, "-c", RUN, str(NOTEBOOK), str(tmp_path), str(done)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert finished.returncode == 0, finished.stderr
    stored = read_outputs(NOTEBOOK)
    assert stored == read_outputs(done)
    assert sum("image/png" in kinds for kinds, _ in stored) == 2
    assert any("round 3" in text for _, text in stored)
