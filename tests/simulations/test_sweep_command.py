"""The command: what it prints, what it leaves, how it ends, and that it goes on after it was killed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hydra.core.plugins import Plugins

from heterofl_flwr.app.main import FAILED, main
from heterofl_flwr.app.request import Request
from heterofl_flwr.app.sweep import job
from heterofl_flwr.app.sweep.job import LOCKS
from heterofl_flwr.runs.folder import RunFolder
from tests.simulations.sweeping import PLACE, SHRUNKEN, finish, planned, stamps, start


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, without_reports):
    """Call the command in an empty folder; return its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["heterofl"])
        capsys.readouterr()
        try:
            status = main(["sweep", *arguments])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return status, *capsys.readouterr()

    return call


def histories(folder: Path) -> dict[str, list[int]]:
    return {path.name: [one.server_round for one in RunFolder(path).history()] for path in sorted(folder.glob("*-s*"))}


@pytest.mark.slow
def test_a_sweep_runs_each_job_once_with_the_files_of_hydra(command, tmp_path):
    status, out, err = command("-m", "mix=a-e,e", *SHRUNKEN)
    assert (status, err) == (0, "")
    names = list(planned("mix=a-e,e", *SHRUNKEN))
    assert re.findall(r" - job ([^;\s]+)", out) == names
    assert re.search(
        r"\nmix=a-e +1 +global-accuracy .*\nmix=e +1 .*\n2 of 2 jobs done; the runs are in .*runs/jobs\n", out
    )
    assert histories(tmp_path / "runs" / "jobs") == {name: [1, 2] for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert {path.name for path in (tmp_path / "runs" / "jobs").iterdir()} == {*names, LOCKS, "multirun.yaml"}

    for name in names:
        own = tmp_path / "runs" / "jobs" / name
        assert {path.name for path in (own / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
        assert f" - job {name}" in (own / "sweep.log").read_text(encoding="utf-8")

    before = stamps(tmp_path / "runs" / "jobs")
    status, out, _ = command("mix=a-e,e", *SHRUNKEN)
    assert status == 0
    assert "2 done before\n" in out
    assert before == stamps(tmp_path / "runs" / "jobs")


def test_a_folder_named_after_the_time_is_the_same_for_the_plan_and_the_jobs(command, monkeypatch):
    def run_request(request: Request) -> None:
        folder = RunFolder(request.out)
        folder.start(request.config)
        folder.note(finished="now")

    monkeypatch.setattr(job, "run_request", run_request)
    status, out, _ = command("mix=d,e", "hydra.sweep.dir=runs/${now:%f}", *SHRUNKEN)
    assert (status, "\n2 of 2 jobs done; " in out) == (0, True)


@pytest.mark.slow
def test_jobs_that_fail_stop_no_other_and_are_listed(command, tmp_path):
    bad, good = planned("train.lr=1e30,0.05", *SHRUNKEN)
    status, out, err = command("train.lr=1e30,0.05", *SHRUNKEN)
    assert status == 1
    assert f"heterofl: 1 of 2 jobs failed:\n  {bad}: round 1: 0 of 20 clients gave" in err
    assert "Traceback" not in err
    assert histories(tmp_path / "runs" / "jobs")[good] == [1, 2]
    status, out, _ = command("train.lr=1e30,0.05", *SHRUNKEN)
    assert status == 0
    assert "diverged before; remove its folder to run it again\n" in out


def test_what_another_process_runs_is_left_to_it(command, tmp_path):
    (name,) = planned(*SHRUNKEN)
    jobs = tmp_path / "runs" / "jobs"
    with FileLock(jobs / LOCKS / name):
        status, out, err = command(*SHRUNKEN)
    assert (status, err) == (0, "")
    assert f"not done here: {name} runs in another process\n" in out
    assert {path.name for path in (jobs / name).iterdir()} == {".hydra", "sweep.log"}


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (("-m", "experiment=table5", "data=mnist", "mix=e", "model.norm=sbn"), 2),
        pytest.param(("experiment=[table3,figure11]", "mix=a5-b5"), 1, marks=pytest.mark.slow),
    ],
)
def test_dry_lists_the_jobs_and_runs_none(command, tmp_path, arguments, number):
    status, out, err = command(*arguments, "dry=true")
    assert (status, err) == (0, "")
    rows = out.splitlines()[2:-2]
    assert [row.split()[0] for row in rows] == list(planned(*(text for text in arguments if text != "-m")))
    assert len(rows) == number
    assert all("new" in row for row in rows)
    assert histories(tmp_path / "runs" / "jobs") == {}


def test_a_setting_without_effect_is_left_out_of_a_job_if_another_job_uses_it(command):
    rules = ("server.robust=none,trimmed", "server.robust-trim=0.1,0.3", "train.mask-fill=-inf", "mix=a1-e1")
    status, out, err = command("-m", "dry=true", *rules)
    assert (status, err) == (0, "")
    rows = out.splitlines()[2:-2]
    assert [re.findall(r"robust\S*", row) for row in rows] == [
        [],
        ["robust=trimmed", "robust-trim=0.1"],
        ["robust=trimmed", "robust-trim=0.3"],
    ]
    status, out, err = command(
        "-m", "dry=true", "method=heterofl,fedrolex,fedh2l", "server.roll-by=1,2", "global-rate=a"
    )
    assert (status, err) == (0, "")
    assert len(out.splitlines()[2:-2]) == 4  # two of FedRolex
    status, _, err = command("-m", "dry=true", *rules, "privacy.delta=1e-5,1e-6")  # the first is the default
    assert (status, err.partition(",")[0]) == (2, "heterofl: privacy.delta: found 1e-06")


def test_an_interpolation_in_an_experiment_has_the_value_of_each_job(command, tmp_path):
    (tmp_path / "experiment").mkdir()
    blocks = "{mine: {mix: e, num-rounds: '2,3', seed: '${num-rounds}'}}"
    text = f"# @package hydra.sweeper\nblocks: {blocks}\nparams: {{train.lr: '${{seed}}'}}"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    status, out, err = command("--config-dir=.", "experiment=mine", "dry=true")
    assert re.findall(r"train\.lr=(\S+)", out) == ["2.0", "3.0"]
    assert (status, err) == (0, "")
    assert re.findall(r"-s(\d)-", out) == ["2", "3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("method=fjord,fedavg", "seed=1,2", "train.lr=0.5", "num-rounds=${seed}", "debug=default"),
        ("data=mnist", "mix=a-e,e", "folder=here,there", "model.hidden='4,8'"),
        ("train.lr=0.1,0.3", "train={lr:0.2}", "hydra.sweep.subdir=${..job.override_dirname}"),
        ("--config-dir=.", "experiment=mine"),
    ],
)
def test_rows_that_share_groups_are_as_hydra_composes_each(command, tmp_path, monkeypatch, arguments):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nseed: ${oc.env:NOWHERE}\nhydra: {sweeper: {blocks: {mine: {seed: '0,1'}}}}"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    plan = command(*arguments, "dry=true")
    kind = Plugins.instance().class_name_to_class["hydra_plugins.heterofl_sweeper.BlockSweeper"]
    slow_twin = lambda own, rows: (own._loader.load_sweep_config(own._master, row) for row in rows)  # noqa: E731
    monkeypatch.setattr(kind, "_compose", slow_twin)
    assert plan[0] == 0
    assert plan == command(*arguments, "dry=true")


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("experiment=table1,table2", "experiment=table1,table2: expected a list, such as experiment=[table7,table8]"),
        ("engine.clint=2", "engine.clint: no setting has this name; did you mean engine.clients?"),
        pytest.param("data=null", "data=null: a group such as experiment or data is null", marks=pytest.mark.slow),
        (
            "data=a/b",
            "data: found 'a/b', expected one of cifar10, cifar100, digits, femnist, mnist, wikitext2, or data.name",
        ),
        ("mix=a,zz", "mix: mix 'zz': cannot read 'zz'; write one like"),
        ("run.dir=here", "run.dir: found 'here', but a sweep names and resumes its jobs itself; set folder"),
        ("seed=0,1 hydra.sweep.dir=/no hydra.sweep.subdir=x", "/no/x would hold two jobs, digits-"),
        ("folder=/dev/null/jobs", "[Errno 20] Not a directory: '/dev/null/jobs"),
    ],
)
def test_a_mistake_is_described_in_one_line_and_nothing_is_run(command, tmp_path, argument, text):
    status, _, err = command(*argument.split())
    (line,) = err.splitlines()
    assert (status, line[: len(text) + 10]) == (2, f"heterofl: {text}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.release
def test_a_reader_that_ends_early_gets_no_error():
    read, write = os.pipe()
    os.close(read)  # as head does
    done = subprocess.run(
        [sys.executable, "-m", "heterofl_flwr", "sweep", "--help"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (FAILED, b"")


def test_a_file_of_ones_own_that_is_no_yaml_is_named(command, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("norms: [", encoding="utf-8")
    status, _, err = command("-m", "--config-dir", str(tmp_path / "own"), "experiment=mine", "dry=true")
    assert (status, err.count("\n")) == (2, 1)
    assert 'mine.yaml", line 1' in err


SWEEP = ("mix=a-e", "assignment=fix,dynamic", "sample.fraction=0.3", *SHRUNKEN, "run.checkpoint-every=1")


def results(path: Path) -> dict[str, object]:
    """Return all that a run measured and made, without times."""
    history = [{**record.to_json(), "seconds": 0.0} for record in RunFolder(path).history()]
    return {"history": history, **{own.name: own.read_bytes() for own in (path / "models").glob("*.safetensors")}}


DIES = "run.callbacks=tests.simulations.sweeping:Die"


@pytest.mark.slow
def test_a_killed_sweep_ends_as_if_nothing_had_happened(command, tmp_path, monkeypatch):
    folder, names = tmp_path / "killed", list(planned(*SWEEP))
    first, second = (RunFolder(folder / name) for name in names)
    assert command(f"folder={folder}", *SWEEP, "assignment=fix")[0] == 0
    before = stamps(first.path)

    status, out = finish(start(folder, *SWEEP, DIES))
    assert status == -signal.SIGKILL, out
    assert len(second.history()) == 1
    assert not second.about()["finished"]

    monkeypatch.setenv(PLACE, str(folder))
    again = command(f"folder={folder}", *SWEEP, DIES)[1]
    assert "1 done before" in again
    assert stamps(first.path) == before
    assert [len(own.about()["starts"]) for own in (first, second)] == [1, 2]

    command(f"folder={tmp_path / 'whole'}", *SWEEP, "assignment=dynamic")
    ours = results(second.path)
    assert len(ours) == 4  # a history, both models, and the moments of the larger one
    assert ours == results(tmp_path / "whole" / second.path.name)
