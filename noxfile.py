"""The tests of what touches Flower, torch and Python, on the versions of them that are allowed.

``nox -s matrix`` makes an environment for each Python and each torch, in a folder beside the project: some gigabytes
for each, and what each version of Flower requires on top of it. It writes its result into
``docs/install.md``.
``make flower`` tries versions of Flower alone, with the packages of ``.venv``.
"""

from pathlib import Path

import nox

FLOWERS = ["1.32.1", "1.36.0", "1.38.0", "1.42.0"]
"""The oldest, two between that differ in what ``transport/compat.py`` names, and the newest that was tested."""

PYTHONS = ["3.11", "3.12", "3.13"]
TORCHES = ["2.11.0", "2.15.0"]  # the oldest that is allowed, and the newest
TESTS = [
    "tests/test_compat.py",
    "tests/test_imports.py",
    "tests/client/test_client.py",
    "tests/classic",
    "tests/federation/test_flower.py",
    "tests/federation/test_replies.py",
    "tests/grids/test_local.py",
    "tests/grids/test_superlink.py",
]
"""The names of Flower that differ, what imports load, a strategy and a client of each API, and two grids."""

TOOLS = ["hypothesis", "psutil", "pytest"]
ROOT = Path(__file__).parent
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}

nox.options.sessions = []  # the matrix downloads much, so it runs only where it is named
nox.options.default_venv_backend = "uv|virtualenv"  # uv keeps one copy of what environments share
nox.options.envdir = str(ROOT.parent / f".{ROOT.name}-nox")
nox.options.reuse_venv = "yes"


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
def matrix(session: nox.Session, torch: str) -> None:
    """Test all versions of Flower with a version of torch on a version of Python, and write what was found."""
    session.install(".", f"torch=={torch}", *TOOLS)
    for flower in FLOWERS:
        layer, report = Path(session.virtualenv.location, f"flwr-{flower}"), Path(session.create_tmp(), "junit.xml")
        if not layer.is_dir():
            session.install("--target", str(layer), f"flwr=={flower}")
        environment = {**QUIET, "PYTHONPATH": f"{layer}:{ROOT}"}
        session.run(
            *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not simulation"),
            *(f"--junit-xml={report}", *(session.posargs or TESTS)),
            env=environment,
            success_codes=[0, 1],
        )
        session.run("python", str(ROOT / ".ci" / "versions.py"), str(report), env=environment)
