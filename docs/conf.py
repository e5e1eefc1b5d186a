"""How Sphinx builds the site; ``make docs`` runs it, with warnings as errors."""

import os
import sys
from pathlib import Path

from heterofl_flwr import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extension"))

# The notebook runs while the site is built: as quiet and as repeatable as the tests.
for variable, value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(variable, value)

project = "heterofl-flwr"
author = "the heterofl-flwr authors"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
exclude_patterns = ["extension"]
templates_path: list[str] = []

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# A notebook is stored without outputs and run when it has changed; the rest is kept.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "site" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"heterofl-flwr {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
