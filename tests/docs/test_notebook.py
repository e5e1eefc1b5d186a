"""The notebook: stored without outputs, and it runs."""

import subprocess
import sys

import nbformat
import pytest

from tests.docs.pages import DOCS

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


def test_notebook_has_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
def test_notebook_runs_and_draws(tmp_path):
    done = tmp_path / "done.ipynb"
    command = [sys.executable, "-c", RUN, str(NOTEBOOK), str(tmp_path), str(done)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert finished.returncode == 0, finished.stderr
    outputs = [out for cell in nbformat.read(done, as_version=4).cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2
    assert any("round 3" in out.get("text", "") for out in outputs)
