"""The authors' side: their own functions in a process of its own (``driver.py``), reached through a pipe."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.data import Dataset
from simulations.bench.plain_loop import to_pixels
from simulations.reference.rounds import Parts

DRIVER = Path(__file__).with_name("driver.py")
PATIENCE = 10.0  # seconds in which their process ends by itself


class Authors:
    """The authors' training, static batch norm and test on MNIST, run as their own ``runExperiment`` runs them.

    Parameters
    ----------
    checkout : Path
        Their repository. Nothing is written into it.
    load : Callable[[], Dataset]
        Loads our data set, from which theirs is written.
    control : str
        Their name of the experiment; see ``Experiment.control``.
    threads : int
        Of torch.
    balanced : bool
        Whether equally many clients of each level train in each round, in place of any.
    seed : int
        Of torch, from which they draw everything.
    state : Path | None
        A file from which they resume, and which they write after each round.
    """

    name = "the authors' code"

    def __init__(
        self,
        checkout: Path,
        load: Callable[[], Dataset],
        control: str,
        threads: int,
        *,
        balanced: bool = True,
        seed: int = 0,
        state: Path | None = None,
    ) -> None:
        self._source = checkout.resolve() / "src"
        if not (self._source / "train_classifier_fed.py").exists():
            lacks = f"{self._source} holds no train_classifier_fed.py"
            raise ConfigError(f"{lacks}; expected a checkout of the authors' repository")
        self._load = load
        path = str(state.resolve()) if state else None
        self._order = {"control": control, "seed": seed, "threads": threads, "balanced": balanced, "state": path}

    def __enter__(self) -> Self:
        """Start the process, in a folder that is removed afterwards."""
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._write_data(work / "data.npz")
            self._log = work / "log.txt"
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

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the process."""
        if kind:
            self._process.kill()
        self._stack.close()

    def play(self, *, evaluate: bool = True) -> Parts:
        """Run the next round, and maybe evaluate."""
        assert self._process.stdin
        print(json.dumps({"evaluate": evaluate}), file=self._process.stdin, flush=True)
        self.history.append(Parts(**self._answer()))
        return self.history[-1]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._end()  # only then its log is complete
            log = self._log.read_text().splitlines()[-15:]
            raise HeteroFLError("\n".join(["the authors' process has ended:", *log]))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        """Let the process end by itself, which it does when its input ends; kill one that is busy."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _write_data(self, path: Path) -> None:
        """Write images as bytes, and labels."""
        data, arrays = self._load(), {}
        for part, split in (("train", data.train), ("test", data.test)):
            arrays[f"{part}_images"] = to_pixels(split.inputs).squeeze(1).numpy()
            arrays[f"{part}_labels"] = split.targets.numpy()
        np.savez(path, allow_pickle=False, **arrays)
