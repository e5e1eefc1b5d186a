"""The tests of what touches Flower and torch, on every version of them that is allowed.

``nox -s flower`` borrows all but Flower from ``.venv``, and takes a minute or two for each version. ``nox -s matrix``
makes an environment for each Flower, Python and torch, and downloads some gigabytes for each torch.
"""

import sys
from pathlib import Path

import nox

FLOWERS = ["1.32.1", "1.36.0", "1.38.0", "1.42.0"]
"""The oldest, two between that differ in what ``heterofl_flwr/compat.py`` names, and the newest that was tested."""

PYTHONS = ["3.11", "3.12", "3.13"]
TORCHES = {"2.11": "0.26", "2.14": "0.29"}  # with the torchvision of each
TESTS = [
    "tests/test_compat.py",
    "tests/test_exports.py",
    "tests/client/test_client.py",
    "tests/classic/test_strategy.py",
    "tests/federation/test_arrivals.py",
    "tests/federation/test_level_table.py",
    "tests/federation/test_replies.py",
    "tests/grids/test_size_guard.py",
    "tests/grids/test_local.py",
    "tests/grids/test_windowed.py",
    "tests/grids/test_workers.py",
]
TOOLS = ["hypothesis", "psutil", "pytest", "pyyaml"]
AHEAD = {"1.42.0"}  # asks for a newer certifi than some registries have, so its own requirements are not installed
ROOT = Path(__file__).parent

nox.options.sessions = ["flower"]


def run_tests(session: nox.Session) -> None:
    """Run the chosen tests, or those that are named after ``--``."""
    session.run(
        *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not simulation"),
        *(session.posargs or TESTS),
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@nox.session
@nox.parametrize("flower", FLOWERS)
def flower(session: nox.Session, flower: str) -> None:
    """Test a version of Flower with all other packages as they are in ``.venv``."""
    site = "python{}.{}/site-packages".format(*sys.version_info)
    shared = ROOT / ".venv" / "lib" / site
    if not shared.is_dir():
        session.error(f"{shared} is not there: run 'make install', and nox with the Python of .venv")
    session.install("--no-deps", f"flwr=={flower}")
    Path(session.virtualenv.location, "lib", site, "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    run_tests(session)


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
@nox.parametrize("flower", FLOWERS)
def matrix(session: nox.Session, flower: str, torch: str) -> None:
    """Test a version of Flower and one of torch on a version of Python, with what they require."""
    pinned = [] if flower in AHEAD else [f"flwr=={flower}"]
    session.install(".", *pinned, f"torch=={torch}.*", f"torchvision=={TORCHES[torch]}.*", *TOOLS)
    if flower in AHEAD:
        session.install("--no-deps", f"flwr=={flower}")
    run_tests(session)
