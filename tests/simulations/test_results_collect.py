import re
from pathlib import Path

import pytest

from heterofl_flwr.runs.folder import RunFolder
from simulations.results import collect as module
from simulations.results.collect import collect
from simulations.results.runs import read_run


@pytest.fixture
def into(tmp_path):
    return tmp_path / "results"


def one(folder, into, **allowed):
    ((path, outcome),) = collect([folder.path], into, allowed)
    assert path == folder.path
    return outcome


def files(into):
    return sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file())


def test_a_finished_run_is_copied_under_the_name_of_its_job(make_run, into):
    folder = make_run(seed=1, mix="a1-e1", data__split="non-iid-2")
    (folder.path / "report.html").write_text("large", encoding="utf-8")
    outcome = one(folder, into)
    assert isinstance(outcome, Path)
    assert outcome == into / "mnist" / "noniid_a-e_dynamic_seed-1"
    assert files(into) == [f"mnist/noniid_a-e_dynamic_seed-1/{name}" for name in ("history.jsonl", "settings.json")]


def test_a_copy_names_no_folder_of_the_machine(make_run, into, tmp_path):
    folder = make_run()
    folder.note(command=f"{tmp_path}/simulations/sweep.py data.root={tmp_path}/data")
    target = one(folder, into)
    text = (target / "settings.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert not re.search(r'"/', text)
    assert RunFolder(target).about()["command"] == ".../sweep.py data.root=.../data"


@pytest.mark.parametrize("commit", ["0123abc-dirty", "unknown"])
def test_a_run_of_no_commit_is_refused_unless_asked_for(make_run, into, commit):
    folder = make_run(commit=commit)
    assert one(folder, into).startswith(f"its code is of no commit ({commit}), so no one can run it again")
    assert not into.exists()
    assert one(folder, into, dirty=True)


def test_another_run_of_the_job_is_refused_unless_asked_for(make_run, into):
    first, second = make_run("first"), make_run("second")
    second.note(starts=["2030-01-01T00:00:00+00:00"])
    one(first, into)
    outcome = one(second, into)
    assert "mnist/iid_e_fix_seed-0 holds another run of this job and seed" in outcome
    assert read_run(one(second, into, replace=True)).started == "2030-01-01T00:00:00+00:00"


def test_an_interrupted_replacement_leaves_no_run_of_two_halves(make_run, into, monkeypatch):
    first, second = make_run("first"), make_run("second")
    second.note(starts=["2030-01-01T00:00:00+00:00"])
    target = one(first, into)

    def interrupted(path, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one(second, into, replace=True)
    assert not RunFolder(target).started
    assert read_run(one(second, into)).started == "2030-01-01T00:00:00+00:00"
