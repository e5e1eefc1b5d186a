"""The audit of dependencies, on what the service answers."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / ".ci" / "audit.py"
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("dependencies", "strict", "code", "said"),
    [
        ([GOOD, UNKNOWN], True, 0, "1 of 2 packages looked up, 0 known vulnerabilities"),
        ([GOOD, BAD], False, 1, "bad 2.0: CVE-1, mended in 2.1\n2 of 2 packages looked up, 1 known vulnerabilities"),
        (
            [UNKNOWN],
            False,
            0,
            "known vulnerabilities: NOT CHECKED, nothing was looked up (the registry knows none of the packages)",
        ),
        (
            [UNKNOWN],
            True,
            1,
            "known vulnerabilities: NOT CHECKED, nothing was looked up (the registry knows none of the packages)",
        ),
        (None, False, 0, "known vulnerabilities: NOT CHECKED, nothing was looked up (no network)"),
        (None, True, 1, "known vulnerabilities: NOT CHECKED, nothing was looked up (no network)"),
    ],
)
def test_it_says_what_it_found(audit, monkeypatch, capsys, dependencies, strict, code, said):
    out = "" if dependencies is None else json.dumps({"dependencies": dependencies})
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, out, "trace\nno network\n")
    )
    assert audit.main(["--strict"] if strict else []) == code
    assert capsys.readouterr().out == said + "\n"
