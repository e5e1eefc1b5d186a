"""The programs of the CI: the audit of dependencies on what the service answers, and the tested versions."""

import ast
import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / ".ci"
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


def program(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit, versions = program("audit"), program("versions")


@pytest.mark.parametrize(
    ("dependencies", "strict", "code"),
    [([GOOD, UNKNOWN], True, 0), ([GOOD, BAD], False, 1), ([UNKNOWN], True, 1), (None, False, 0), (None, True, 1)],
)
def test_the_audit_fails_on_what_is_known_and_strictly_on_nothing(monkeypatch, capsys, dependencies, strict, code):
    out = "" if dependencies is None else json.dumps({"dependencies": dependencies})
    done = subprocess.CompletedProcess([], 1, out, "trace\nno network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert audit.main(["--strict"] if strict else []) == code
    assert ("NOT CHECKED" in capsys.readouterr().out) == (GOOD not in (dependencies or []))


def test_the_table_of_versions_is_current():
    cells = json.loads(versions.DATA.read_text(encoding="utf-8"))
    page = versions.PAGE.read_text(encoding="utf-8")
    assert versions.table(cells) in page
    assert versions.filled(page, cells) == page


def test_the_matrix_runs_tests_that_exist():
    noxfile = ast.parse((FOLDER.parent / "noxfile.py").read_text(encoding="utf-8"))  # nox need not be installed
    values = {ast.unparse(node.targets[0]): node.value for node in noxfile.body if isinstance(node, ast.Assign)}
    tests = ast.literal_eval(values["TESTS"])
    assert [path for path in tests if not (FOLDER.parent / path).exists()] == []
