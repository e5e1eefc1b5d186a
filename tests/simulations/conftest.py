"""Run folders as a run leaves them, made of numbers that one can check by hand."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from heterofl_flwr.common.files import to_json
from heterofl_flwr.core.levels import LEVELS, level_name
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import ModelCosts, RunFolder, page
from heterofl_flwr.runs import origin
from heterofl_flwr.runs.costs import LevelCost
from heterofl_flwr.settings.validate import from_flat, to_flat

PARAMETERS = {"a": 1_556_874, "b": 391_370, "c": 98_922, "d": 25_274, "e": 6_594}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

MakeRun = Callable[..., RunFolder]


def make_record(number: int, evaluate: Mapping[str, float], rate: float = 1.0, clients: int = 10) -> RoundRecord:
    return RoundRecord(
        server_round=number,
        seconds=2.0,
        learning_rate=0.01,
        rates=dict.fromkeys(range(clients), rate),
        evaluate=evaluate,
        bytes_down=100,
        bytes_up=100,
    )


def costs(global_rate: float) -> ModelCosts:
    levels = tuple(
        LevelCost(level_name(rate), rate, PARAMETERS[name], 10, 4 * PARAMETERS[name]) for name, rate in LEVELS.items()
    )
    return ModelCosts(global_rate, levels)


@pytest.fixture
def make_run(tmp_path, monkeypatch) -> MakeRun:
    """Return a function that makes a run folder: settings, what was evaluated by round, and where it stopped."""
    monkeypatch.setattr(origin, "machine", lambda: "a machine, 2 cores, no GPU")

    def make(
        name: str = "run",
        evaluated: Mapping[int, Mapping[str, float]] | None = None,
        *,
        rounds: int | None = None,
        commit: str = COMMIT,
        clients: int = 10,
        **settings: object,
    ) -> RunFolder:
        named = {key.replace("__", "."): own for key, own in settings.items()}
        # 'heterofl run' waits for all nodes, and folders of earlier versions tell their number by this alone.
        usual = {"data.name": "mnist", "mix": "e1", "assignment": "dynamic", "sample.min-nodes": 100}
        given = {**usual, **named}
        given = {key.replace("_", "-"): own for key, own in given.items()}
        concrete = from_flat(given)
        monkeypatch.setattr(origin, "commit", lambda: commit)
        folder = RunFolder(tmp_path / "runs" / name)
        folder.start(to_flat(concrete) | {"run.dir": str(folder.path), "data.root": str(tmp_path / "data")})
        folder.write_costs(costs(concrete.mix.global_rate))
        done = concrete.num_rounds if rounds is None else rounds
        points = {done: {"global-accuracy": 0.9, "local-accuracy": 0.95}} if evaluated is None else evaluated
        records = [make_record(number, points.get(number, {}), clients=clients) for number in range(1, done + 1)]
        # As RunFolder.append does line by line, which takes its time to bring each one to the disk.
        lines = "".join(f"{to_json(record.to_json())}\n" for record in records)
        (folder.path / "history.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def without_reports(monkeypatch) -> None:
    """Let runs in this process draw no report, which takes most of the time of a short one."""
    monkeypatch.setattr(page, "write_page", lambda folder: folder.report)


@pytest.fixture
def checkout() -> Path:
    """Return a checkout of the authors' repository; skip where none is named."""
    if "HETEROFL_AUTHORS" not in os.environ:
        pytest.skip("needs the HeteroFL authors' code: set HETEROFL_AUTHORS to a checkout of their repository")
    return Path(os.environ["HETEROFL_AUTHORS"]).resolve()


@pytest.fixture
def printed(tmp_path) -> Path:
    """Return a folder with a paper of a few numbers, so that tests need no other."""
    folder = tmp_path / "paper"
    folder.mkdir()
    tables = [
        "dataset,method,ratio,parameters,flops_as_printed,space_mb,iid,noniid_local,noniid_global",
        "mnist,e,1.00,6600,400500,0.03,98.66,99.07,92.84",
        "mnist,a-e,0.50,781700,40500000,2.98,99.46,99.89,98.96",
    ]
    iid = ["mode,norm,scaler,mnist,cifar10", "e,gn,,98.7,62.6", "e,sbn,,98.7,77.0", "a-e,sbn,no,99.0,90.1"]
    noniid = [
        "mode,norm,scaler,masked_loss,mnist_local,mnist_global,cifar10_local,cifar10_global",
        "e,sbn,,no,90.1,90.1,40.7,40.4",
        "a-e,none,no,yes,99.4,95.7,89.1,52.8",
    ]
    for name, lines in {"tables": tables, "ablation_iid": iid, "ablation_noniid": noniid}.items():
        (folder / f"{name}.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder
