"""The command: what it prints, what it leaves, and how it ends."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode

from heterofl_flwr.report import RunFolder
from simulations.sweep import __main__ as run
from simulations.sweep import cost as speed
from simulations.sweep import sweeper
from simulations.sweep.plan import Composer, flat
from simulations.sweep.state import LOCKS, held
from tests.simulations.sweeping import SHRUNKEN, planned


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Call the command in an empty folder; return its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        capsys.readouterr()
        try:
            status = run.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def unmeasured(monkeypatch):
    """Let every model be as fast as any other."""
    monkeypatch.setattr(speed, "_measure", lambda settings, batch, device: (1e-3, 1e-4))


def histories(folder: Path) -> dict[str, list[int]]:
    return {path.name: [one.server_round for one in RunFolder(path).history()] for path in sorted(folder.glob("*-s*"))}


@pytest.mark.slow
def test_a_sweep_runs_each_job_once_and_leaves_nothing_else(command, tmp_path):
    status, out, err = command("-m", "mix=a-e,e", *SHRUNKEN)
    assert (status, err) == (0, "")
    names = list(planned("mix=a-e,e", *SHRUNKEN))
    assert f"job 1 of 2: {names[0]}" in out
    assert f"job 2 of 2: {names[1]}" in out
    assert histories(tmp_path / "runs" / "jobs") == {name: [1, 2] for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert {path.name for path in (tmp_path / "runs" / "jobs").iterdir()} == {*names, LOCKS}

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "jobs").glob("digits*/**/*")}
    status, out, _ = command("mix=a-e,e", *SHRUNKEN)
    assert status == 0
    assert "2 jobs in " in out
    assert "2 done before" in out
    assert "job 1" not in out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "jobs").glob("digits*/**/*")}


@pytest.mark.slow
def test_jobs_that_fail_stop_no_other_and_are_listed_with_their_causes(command, tmp_path):
    bad, good = planned("train.lr=1e30,0.05", *SHRUNKEN)
    status, out, err = command("train.lr=1e30,0.05", *SHRUNKEN)
    assert status == 1
    assert "failed: round 1: 0 of 20 clients gave a usable reply" in out
    assert err.startswith(f"simulations.sweep: 1 of 2 jobs failed:\n  {bad}: round 1: 0 of 20 clients gave")
    assert "Traceback" not in err
    assert histories(tmp_path / "runs" / "jobs")[good] == [1, 2]


def test_what_another_process_runs_is_left_to_it(command, tmp_path):
    (name,) = planned(*SHRUNKEN)
    with held(tmp_path / "runs" / "jobs" / LOCKS / name):
        status, out, err = command(*SHRUNKEN)
    assert (status, err) == (0, "")
    assert f"not done here: {name} runs in process {os.getpid()} on" in out
    assert not (tmp_path / "runs" / "jobs" / name).exists()


def test_other_launchers_get_all_jobs_at_once(command, tmp_path, monkeypatch, unmeasured):
    launched = []
    basic = next(own for own in Plugins.instance().discover(Launcher) if own.__name__ == "BasicLauncher")
    launch = basic.launch

    def watched(self, job_overrides, initial_job_idx):
        launched.append([list(row) for row in job_overrides])
        return launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(basic, "launch", watched)
    jobs = planned("mix=a,e", *SHRUNKEN)
    with ExitStack() as locks:
        for name in jobs:
            locks.enter_context(held(tmp_path / "runs" / "jobs" / LOCKS / name))
        assert command("mix=a,e", *SHRUNKEN)[0] == 0
        monkeypatch.setattr(sweeper, "ONE_BY_ONE", "another")
        status, out, _ = command("mix=a,e", *SHRUNKEN)
    rows = [list(own.row) for own in jobs.values()]
    assert launched == [[rows[0]], [rows[1]], rows]
    assert status == 0
    assert out.count("not done here: ") == 2
    assert out.endswith("0 of 2 jobs done\n")


def test_dry_lists_the_jobs_and_runs_none(command, tmp_path, unmeasured):
    status, out, err = command("-m", "experiment=table5", "data=mnist", "mix=e", "dry=true", "seed=0,1")
    assert (status, err) == (0, "")
    rows = out.splitlines()[2:-2]
    assert [row.split()[0] for row in rows] == list(planned("experiment=table5", "data=mnist", "mix=e", "seed=0,1"))
    assert len(rows) == 7 * 2
    assert all("new" in row for row in rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("data=imagenet", "data: found 'imagenet', expected one of cifar10, digits, mnist, wikitext2"),
        ("experiment=table6", "experiment: found 'table6', expected one of all, "),
        ("training.lr=3", "training.lr: no setting has this name; did you mean train.lr?"),
        ("train.lr=fast", "train.lr: found 'fast' (str), expected a number above 0, or 'auto'"),
        ("engine.clients=0", "engine.clients: found 0 (int), expected an integer of 1 or more, or 'auto'"),
        ("+train.speed=3", "train.speed: no setting has this name"),
        ("mix=a,zz", "mix: mix 'zz': cannot read 'zz'; write one like"),
        ("experiment=table7,table8", "experiment=table7,table8 is no choice of rows; write experiment=[table7,table8]"),
        ("+hydra.sweeper.params.seed='1,2'", "hydra.sweeper.params.seed: found '1,2', expected a block; write seed="),
        ("seed=1,", "seed=1,: this is no override such as key=value"),
        ("table7", "table7: this is no override such as key=value"),
        ("run.dir=here", "run.dir: found 'here', but a sweep names and resumes its jobs itself; set folder"),
        ("mix=${nothing}", "Interpolation key 'nothing' not found"),
    ],
)
def test_misuse_is_told_in_one_line_and_nothing_is_run(command, tmp_path, argument, text):
    status, out, err = command("-m", argument)
    assert (status, out) == (2, "")
    assert err.startswith(f"simulations.sweep: {text}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data.name=digitz"], "there is no data set 'digitz'; did you mean digits?"),
        (["model.name=transformer", "model.hidden=''"], "the model transformer cannot read the data set digits"),
        (["data.split=non-iid-50"], "non-iid-50 does not fit 20 clients and 10 classes"),
        (["engine.clients=5000,20"], "1442 examples are too few for 5000 clients"),
        (["engine.cpus=9999"], "cpus is 9999, and this machine has "),
        (["engine.gpus=999"], "gpus is 999, and this machine has "),
        (["folder=/dev/null/jobs"], "folder /dev/null/jobs: /dev/null is a file"),
    ],
)
def test_jobs_that_cannot_be_are_told_in_one_line_and_nothing_is_run(command, tmp_path, arguments, text, unmeasured):
    status, out, err = command("-m", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"simulations.sweep: {text}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_hydras_own_errors_are_there_for_those_who_want_them(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not find 'data/imagenet'"):
        command("data=imagenet")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_an_interrupted_sweep_says_how_to_go_on(command, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupt)
    status, _, err = command()
    assert (status, err) == (130, "simulations.sweep: interrupted; the same command goes on\n")
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_help_tells_the_groups_and_how_to_call_it(command):
    status, out, _ = command("--help")
    assert status == 0
    assert "python -m simulations.sweep -m experiment=table7 seed=0,1,2" in out
    assert "data: cifar10, digits, mnist, wikitext2" in out
    assert "moments-batch-size: 0" in out


@pytest.mark.parametrize(
    "row",
    [
        ("data=mnist", "mix=a-e", "seed=3"),
        ("split=non-iid-2", "train.mask-fill=-inf", "train.milestones='1,2'", "model.scaler=False"),
        ("method=heterofl-fixed", "report=lean", "mix=1.0x1-0.3x1", "assignment=fix"),
        ("mix=${assignment}", "+train.new=3", "num-rounds=3"),
    ],
)
def test_rows_are_composed_as_hydra_does_it(row):
    with initialize_config_dir(str(run.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        quick = Composer(loader, master, OverridesParser.create(config_loader=loader))(row)
        assert quick == flat(compose("config", list(row)))


@pytest.mark.slow
def test_two_rounds_of_digits(command, tmp_path):
    status, _, err = command("split=non-iid-2", "mix=a-e", *SHRUNKEN)
    assert (status, err) == (0, "")
    assert list(histories(tmp_path / "runs" / "jobs").values()) == [[1, 2]]


@pytest.mark.slow
def test_two_rounds_of_mnist(command, shared, tmp_path):
    root = shared / "data"
    if not (root / "ylecun" / "mnist").is_dir():
        pytest.skip("needs the data set in shared/data/ylecun/mnist")
    few = ("sample.fraction=0.02", "evaluate.every=2", "evaluate.central=false", "model.norm=gn")
    status, _, err = command("data=mnist", "split=non-iid-2", "mix=a-e", f"data.root={root}", *SHRUNKEN, *few)
    assert (status, err) == (0, "")
    assert list(histories(tmp_path / "runs" / "jobs").values()) == [[1, 2]]
