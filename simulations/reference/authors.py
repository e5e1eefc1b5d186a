"""``Authors``: the authors' functions in a separate process (``driver.py``), controlled through a pipe.

Their experiment is MNIST with levels a to e, as in the paper.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.data import load_dataset
from simulations.bench.measure import pixels_of
from simulations.program import cores
from simulations.results.paper import CLIENTS_A_ROUND

DRIVER = Path(__file__).with_name("driver.py")
PATIENCE = 10.0  # seconds to wait until their process ends by itself
MIX = "a1-b1-c1-d1-e1"


class Parts(NamedTuple):
    """Seconds of the parts of a round, and its accuracies; 0 for parts that were not run."""

    train: float
    moments: float = 0.0
    test: float = 0.0
    accuracy: float = 0.0
    local_accuracy: float = 0.0

    @property
    def whole(self) -> float:
        """Seconds of the whole round."""
        return self.train + self.evaluation

    @property
    def evaluation(self) -> float:
        """Seconds of static batch norm and of the test."""
        return self.moments + self.test


@dataclass(frozen=True, slots=True)
class Experiment:
    """MNIST in the folder ``root`` (empty: the default), split among clients of some levels."""

    root: str
    clients: int
    mix: str = MIX
    split: str = "iid"
    assignment: str = "fix"
    variant: str = "bn_1_1"  # norm, Scaler and mask in the authors' notation

    @property
    def fraction(self) -> float:
        """Fraction of the clients that train in a round."""
        return CLIENTS_A_ROUND / self.clients

    @property
    def control(self) -> str:
        """The authors' name of the experiment."""
        return f"1_{self.clients}_{self.fraction:g}_{self.split}_{self.assignment}_{self.mix}_{self.variant}"


class Authors:
    """The authors' training, static batch norm and test on MNIST, run as in their ``runExperiment``, on all cores.

    Parameters
    ----------
    checkout : Path
        A checkout of their repository; nothing is written into it.
    experiment : Experiment
        What to run; its data set is written in their format.
    balanced : bool
        Whether equally many clients of each level train in each round; else any clients.
    seed : int
        Seed of torch's generator, which their code uses for all draws.
    state : Path | None
        File to resume from, which is written after each round.
    """

    name = "the authors' code"

    def __init__(
        self, checkout: Path, experiment: Experiment, *, balanced: bool = True, seed: int = 0, state: Path | None = None
    ) -> None:
        self._source, self._experiment = checkout.resolve() / "src", experiment
        if not (self._source / "train_classifier_fed.py").exists():
            lacks = f"{self._source} holds no train_classifier_fed.py"
            raise ConfigError(f"{lacks}; expected a checkout of the authors' repository")
        self._order = {"control": experiment.control, "threads": cores(), "balanced": balanced, "seed": seed}
        self._order["state"] = str(state.resolve()) if state else None

    def __enter__(self) -> Self:
        """Start the process in a temporary folder."""
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._write_data(work / "data.npz")
            self._log = work / "log.txt"
            log = stack.enter_context(self._log.open("w"))
            process = subprocess.Popen(
                [sys.executable, "-B", str(DRIVER), json.dumps({**self._order, "work": str(work)})],
                cwd=self._source,  # their code reads its settings from this folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},  # their files hold numpy arrays
            )
            self._process = stack.enter_context(process)
            stack.callback(self._end)
            self.history = [Parts(**parts) for parts in self._answer()["history"]]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the process."""
        if kind:
            self._process.kill()
        self._stack.close()

    def play(self, *, evaluate: bool = True) -> Parts:
        """Run the next round, with or without an evaluation."""
        assert self._process.stdin
        print(json.dumps({"evaluate": evaluate}), file=self._process.stdin, flush=True)
        self.history.append(Parts(**self._answer()))
        return self.history[-1]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._end()  # the log is complete after the end
            log = self._log.read_text().splitlines()[-15:]
            raise HeteroFLError("\n".join(["the authors' process has ended:", *log]))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        """Close the input of the process, which then ends; kill it if it is still busy after ``PATIENCE``."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _write_data(self, path: Path) -> None:
        """Write the images as bytes, and the labels."""
        data, arrays = load_dataset("mnist", self._experiment.root or None), {}
        for part, split in (("train", data.train), ("test", data.test)):
            arrays[f"{part}_images"] = pixels_of(data, split).squeeze(1).numpy()
            arrays[f"{part}_labels"] = split.targets.numpy()
        np.savez(path, allow_pickle=False, **arrays)
