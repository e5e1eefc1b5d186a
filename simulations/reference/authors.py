"""The authors' side: their own functions in a process of its own (``authors_driver.py``), reached through a pipe."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from heterofl_flwr.data import Dataset
from heterofl_flwr.errors import ConfigError, HeteroFLError
from simulations.bench import plain_loop
from simulations.reference.rounds import Experiment, Model, Parts

DRIVER = Path(__file__).with_name("authors_driver.py")
PATIENCE = 10.0  # seconds to leave by itself


class Authors:
    """The authors' training, static batch norm and test, run as their own ``runExperiment`` runs them.

    Parameters
    ----------
    checkout : Path
        Their repository. Nothing is written into it.
    experiment : Experiment
        What is trained.
    threads : int
        Of torch.
    assignment : str
        ``fix`` or ``dynamic``.
    balanced : bool
        Whether two clients of each level train in each round, in place of any ten.
    variant : str
        Norm, Scaler and mask as they write them, such as ``none_1_0``.
    seed : int
        Of torch, from which they draw everything.
    state : Path | None
        A file from which they go on, and which they write after each round.
    """

    name = "the authors' code"

    def __init__(
        self,
        checkout: Path,
        experiment: Experiment,
        threads: int,
        *,
        assignment: str = "fix",
        balanced: bool = True,
        variant: str = "bn_1_1",
        seed: int = 0,
        state: Path | None = None,
    ) -> None:
        self._source = checkout.resolve() / "src"
        if not (self._source / "train_classifier_fed.py").exists():
            raise ConfigError(
                f"{self._source} holds no train_classifier_fed.py; expected a checkout of the authors' repository"
            )
        self._experiment = experiment
        dealt = f"{experiment.clients}_{experiment.fraction:g}_{experiment.split}"
        self._order = {
            "control": f"1_{dealt}_{assignment}_{experiment.mix}_{variant}",
            "seed": seed,
            "threads": threads,
            "balanced": balanced,
            "state": str(state.resolve()) if state else None,
        }

    def __enter__(self) -> Self:
        """Start the process, in a folder that is gone afterwards."""
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_data(self._experiment.data, work / "mnist.npz")
            self._model, self._log = work / "model.npz", work / "log.txt"
            log = stack.enter_context(self._log.open("w"))
            self._process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-B", str(DRIVER), json.dumps({**self._order, "work": str(work)})],
                    cwd=self._source,  # they read their settings from there
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},  # their files hold numpy arrays
                )
            )
            stack.callback(self._end)
            self.history = [Parts(**parts) for parts in self._answer()["history"]]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        if kind:
            self._process.kill()
        self._stack.close()

    def round(self) -> tuple[Parts, Model]:
        """Run the next round, and evaluate."""
        parts = self.play(evaluate=True, model=self._model)
        with np.load(self._model) as arrays:
            values = [
                [arrays[f"{kind}{number}"] for number in range(sum(name.startswith(kind) for name in arrays.files))]
                for kind in ("parameter", "mean", "variance")
            ]
        return parts, Model(*values)

    def play(self, *, evaluate: bool, model: Path | None = None) -> Parts:
        """Run the next round."""
        if not self._process.stdin:
            raise HeteroFLError("the authors' process has no input")
        self._process.stdin.write(json.dumps({"evaluate": evaluate, "model": str(model) if model else None}) + "\n")
        self._process.stdin.flush()
        self.history.append(Parts(**self._answer()))
        return self.history[-1]

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._await_end()  # only then is all that it says in its log
            log = self._log.read_text().splitlines()[-15:]
            raise HeteroFLError("\n".join(["the authors' process has ended:", *log]))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        """Let the process leave by itself, which it does when its input ends; kill one that is busy."""
        if self._process.stdin:
            self._process.stdin.close()
        self._await_end()

    def _await_end(self) -> None:
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()


def write_data(data: Dataset, path: Path) -> None:
    """Write images as bytes, and labels."""
    arrays = {}
    for part, split in (("train", data.train), ("test", data.test)):
        arrays[f"{part}_images"] = plain_loop.MNIST.pixels(split.inputs)[:, 0].numpy()
        arrays[f"{part}_labels"] = split.targets.numpy()
    np.savez(path, allow_pickle=False, **arrays)
