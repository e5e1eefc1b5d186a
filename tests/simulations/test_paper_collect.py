import json
import re

import pytest
import torch

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.runs import Checkpoint, RunFolder
from simulations.paper import collect as module
from simulations.paper.collect import collect
from simulations.paper.runs import read_paper_run
from tests.simulations.conftest import make_record


@pytest.fixture
def into(tmp_path):
    return tmp_path / "results"


def one(folder, into, **allowed):
    (outcome,) = collect([folder.path], into, allowed)
    return outcome


def files(into):
    return sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file())


def test_a_finished_run_is_copied_under_the_name_of_its_job(make_run, into):
    folder = make_run(seed=1, mix="a1-e1", data__split="non-iid-2")
    (folder.path / "report.html").write_text("large", encoding="utf-8")
    outcome = one(folder, into)
    assert outcome.reason == ""
    assert outcome.target == into / "mnist" / "noniid_a-e_dynamic_seed-1"
    assert files(into) == [f"mnist/noniid_a-e_dynamic_seed-1/{name}" for name in ("history.jsonl", "settings.json")]


def test_a_copy_names_no_folder_of_the_machine(make_run, into, tmp_path):
    folder = make_run()
    folder.note(command=f"{tmp_path}/simulations/sweep.py data.root={tmp_path}/data")
    target = one(folder, into).target
    text = (target / "settings.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert not re.search(r'"/', text)
    assert RunFolder(target).about()["command"] == ".../sweep.py data.root=.../data"


@pytest.mark.parametrize("commit", ["0123abc-dirty", "unknown"])
def test_a_run_of_no_commit_is_refused_unless_asked_for(make_run, into, commit):
    folder = make_run(commit=commit)
    assert one(folder, into).reason.startswith(f"its code is of no commit ({commit}), so no one can run it again")
    assert not into.exists()
    assert one(folder, into, dirty=True).reason == ""


def test_a_run_may_be_copied_again_and_further_on(make_run, into):
    folder = make_run(rounds=199)
    one(folder, into, unfinished=True)
    folder.append(make_record(200, {"global-accuracy": 0.9}))
    target = one(folder, into).target
    assert read_paper_run(target).rounds == 200
    assert one(folder, into).reason == ""


def test_an_unfinished_run_can_go_on_from_its_copy(make_run, into):
    folder = make_run(rounds=120)
    for number in (119, 120):
        folder.save_checkpoint(Checkpoint(server_round=number, state={"w": torch.full((2,), float(number))}))
    copy = RunFolder(one(folder, into, unfinished=True).target)
    found = copy.load_checkpoint()
    assert (found.server_round, found.state["w"].tolist()) == (120, [120.0, 120.0])
    assert [record.server_round for record in copy.history()][-1] == 120
    for number in range(121, 201):
        folder.append(make_record(number, {"global-accuracy": 0.9}))
    one(folder, into)
    assert files(into) == [f"mnist/iid_e_fix_seed-0/{name}" for name in ("history.jsonl", "settings.json")]


def test_another_run_of_the_job_is_refused_unless_asked_for(make_run, into):
    first, second = make_run("first"), make_run("second")
    second.note(starts=["2030-01-01T00:00:00+00:00"])
    one(first, into)
    outcome = one(second, into)
    assert "mnist/iid_e_fix_seed-0 holds another run of this job and seed" in outcome.reason
    assert read_paper_run(one(second, into, replace=True).target).started == "2030-01-01T00:00:00+00:00"


def test_a_folder_or_a_copy_that_cannot_be_read_is_named(make_run, into):
    folder = make_run()
    for path in (one(folder, into).target, folder.path):
        (path / "settings.json").write_text("{", encoding="utf-8")
        assert f"{path.name}/settings.json cannot be read" in one(folder, into).reason


def test_a_copy_is_there_whole_or_not_at_all(make_run, into, monkeypatch):
    folder = make_run()
    before = one(folder, into).target
    content = (before / "settings.json").read_bytes()
    real = module.write_atomic

    def fails(path, data):
        if path.name == "history.jsonl":
            raise HeteroFLError("the disk is full")
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", fails)
    with pytest.raises(HeteroFLError, match="the disk is full"):
        one(folder, into)
    assert (before / "settings.json").read_bytes() == content
    assert [path.name for path in before.parent.iterdir()] == [before.name]


def test_data_of_a_folder_is_copied_below_into(make_run, into, tmp_path):
    data = tmp_path / "pets"
    folder = make_run(data__name=str(data))
    target = one(folder, into).target
    assert target.is_relative_to(into)
    assert json.loads((target / "settings.json").read_text(encoding="utf-8"))["settings"]["data.name"] == ".../pets"
