"""The programs of the CI: the audit of dependencies on what the service answers, and the table of tested versions."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / ".ci"
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}
NOT_CHECKED = "known vulnerabilities: NOT CHECKED, nothing was looked up "


def program(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit, versions = program("audit"), program("versions")


@pytest.mark.parametrize(
    ("dependencies", "strict", "code", "said"),
    [
        ([GOOD, UNKNOWN], True, 0, "1 of 2 packages looked up, 0 known vulnerabilities"),
        ([GOOD, BAD], False, 1, "bad 2.0: CVE-1, mended in 2.1\n2 of 2 packages looked up, 1 known vulnerabilities"),
        ([UNKNOWN], True, 1, f"{NOT_CHECKED}(the registry knows none of the packages)"),
        (None, False, 0, f"{NOT_CHECKED}(no network)"),
        (None, True, 1, f"{NOT_CHECKED}(no network)"),
    ],
)
def test_the_audit_says_what_it_found(monkeypatch, capsys, dependencies, strict, code, said):
    out = "" if dependencies is None else json.dumps({"dependencies": dependencies})
    done = subprocess.CompletedProcess([], 1, out, "trace\nno network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert audit.main(["--strict"] if strict else []) == code
    assert capsys.readouterr().out == said + "\n"


def test_the_table_of_versions_is_current():
    cells = json.loads(versions.DATA.read_text(encoding="utf-8"))
    page = versions.PAGE.read_text(encoding="utf-8")
    assert versions.table(cells) in page
    assert versions.filled(page, cells) == page
