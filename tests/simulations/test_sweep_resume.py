"""A sweep that is killed half-way goes on where it was, repeats nothing, and ends as if nothing had happened."""

import signal
import sys
from pathlib import Path

import pytest

from heterofl_flwr.app.cli.main import main
from heterofl_flwr.report import RunFolder
from tests.simulations.sweeping import PLACE, SHRUNKEN, finish, planned, stamps, start

SWEEP = ("mix=a-e", "assignment=fix,dynamic", "sample.fraction=0.3", *SHRUNKEN, "run.checkpoint-every=1")


def run(monkeypatch, folder: Path, *arguments: str) -> None:
    """Run the command in this process, which is quicker than to start one."""
    monkeypatch.setattr(sys, "argv", ["heterofl"])
    assert main(["sweep", f"folder={folder}", *arguments]) == 0


def results(path: Path) -> dict[str, object]:
    """Return all that a run measured and made, without times."""
    history = [{**record.to_json(), "seconds": 0.0} for record in RunFolder(path).history()]
    return {"history": history, **{own.name: own.read_bytes() for own in (path / "models").glob("*.safetensors")}}


@pytest.mark.slow
def test_goes_on_where_it_was(tmp_path, monkeypatch, capsys, without_reports):
    folder, names = tmp_path / "killed", list(planned(*SWEEP))
    first, second = (RunFolder(folder / name) for name in names)
    run(monkeypatch, folder, *SWEEP, "assignment=fix")
    before = stamps(first.path)

    status, out = finish(start(folder, *SWEEP, "run.callbacks=tests.simulations.sweeping:Die"))
    assert status == -signal.SIGKILL, out
    assert len(second.history()) == 1
    assert not second.about()["finished"]

    monkeypatch.setenv(PLACE, str(folder))
    run(monkeypatch, folder, *SWEEP)
    assert "1 done before" in capsys.readouterr().out
    assert stamps(first.path) == before
    assert [len(own.about()["starts"]) for own in (first, second)] == [1, 2]

    run(monkeypatch, tmp_path / "whole", *SWEEP, "assignment=dynamic")
    ours = results(second.path)
    assert len(ours) == 4  # a history, both models, and the moments of the larger one
    assert ours == results(tmp_path / "whole" / second.path.name)
