"""The table of tested versions: what it says of a report of pytest, and that the page is current."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
REPORT = """<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10"/></testsuites>"""


@pytest.fixture(scope="module")
def versions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("versions", ROOT / ".ci" / "versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cell(flwr: str, **more) -> dict:
    found = {"python": "3.11.7", "torch": "2.15.0+cu130", "flwr": flwr, "passed": 4, "failed": 0, "skipped": 0}
    return {**found, "date": "2026-01-02", "commit": "0123456789", "machine": "a machine", **more}


def test_page_is_current(versions):
    cells = json.loads(versions.DATA.read_text(encoding="utf-8"))
    assert versions.PAGE.read_text(encoding="utf-8") == versions.page(cells)


def test_counts_are_those_of_pytest(versions, tmp_path):
    report = tmp_path / "junit.xml"
    report.write_text(REPORT)
    assert versions.read_counts(report) == {"passed": 4, "failed": 3, "skipped": 3}


def test_a_row_has_each_version_of_flower_and_says_what_failed_and_what_was_not_run(versions):
    cells = [
        cell("1.32.1"),
        cell("1.42.0", failed=2, skipped=1, date="2026-01-03", commit="ab12cd3456"),
        cell("1.36.0", python="3.12.1"),
    ]
    lines = versions.page(sorted(cells, key=versions.place)).splitlines()
    assert (
        "| 3.11.7 | 2.15.0 | 4 passed | not run | **2 failed**, 4 passed, 1 skipped | 2026-01-03 | 0123456, ab12cd3 |"
        in lines
    )
    assert "| 3.12.1 | 2.15.0 | not run | 4 passed | not run | 2026-01-02 | 0123456 |" in lines
