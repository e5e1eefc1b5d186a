"""Program that runs the HeteroFL authors' code on MNIST, a round for each line of its input.

It is started in the ``src`` folder of a checkout of their repository. It imports nothing of this package, because names
of their modules (``data``, ``utils``, ``datasets``) clash with those of other packages. Their files are not changed.
"""

import importlib
import json
import os
import sys
import types
import warnings
from collections import Counter
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

DATA, MODEL = "MNIST", "conv"


class Experiment:
    """The set-up of their ``runExperiment``, and one iteration of its loop.

    ``order`` has ``control``, their name of the experiment; ``seed``; ``work``, a folder to write in, with the data;
    ``threads``; ``balanced``, whether equally many clients of each level train; ``state``, a file to resume from, or
    None.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        torch.set_num_threads(order["threads"])
        self.theirs = import_theirs(order["control"])
        self.cfg: dict[str, Any] = self.theirs.cfg
        os.chdir(order["work"])
        self.cfg["model_tag"] = f"{order['seed']}_{DATA}_label_{MODEL}_{order['control']}"
        self.theirs.process_control()
        write_data(self.theirs, Path("data", DATA, "processed"))
        torch.manual_seed(order["seed"])
        self.dataset = self.theirs.fetch_dataset(DATA, "label")
        self.theirs.process_dataset(self.dataset)
        self.state = order["state"]
        self.history: list[dict[str, float]] = []
        model = getattr(self.theirs.models, MODEL)(model_rate=self.cfg["global_model_rate"])
        self.model = model.to(self.cfg["device"])
        self.optimizer = self.theirs.make_optimizer(self.model, self.cfg["lr"])
        self.scheduler = self.theirs.make_scheduler(self.optimizer)
        self.splits = self.theirs.split_dataset(self.dataset, self.cfg["num_users"], self.cfg["data_split_mode"])
        before = self.load() if self.state and os.path.exists(self.state) else None
        self.federation = self.theirs.Federation(self.model.state_dict(), self.cfg["model_rate"], self.splits[1])
        self.logger = self.theirs.Logger("output/runs/train")
        self.seed = self.balanced_seed() if order["balanced"] else None
        self.users: list[int] = []
        self._watch_users()
        if before is not None:
            torch.set_rng_state(before)  # at the end, because the set-up draws from the generator

    def balanced_seed(self) -> int:
        """Return the first seed with which their draw has equally many clients of each level."""
        users = self.cfg["num_users"]
        number = int(np.ceil(self.cfg["frac"] * users))
        for seed in count():
            torch.manual_seed(seed)
            if self.is_balanced(torch.randperm(users)[:number].tolist()):
                break
        return seed

    def is_balanced(self, users: list[int]) -> bool:
        """Whether equally many of these clients are at each level."""
        rates = self.cfg["model_rate"]
        found = Counter(rates[user] for user in users)
        return len(found) == len(set(rates)) and len(set(found.values())) == 1

    def _watch_users(self) -> None:
        """Make their code store the clients of each round in ``users``."""
        make_local = self.theirs.make_local

        def make_and_note(*args: Any) -> Any:
            made = make_local(*args)
            self.users = made[2]
            return made

        self.theirs.make_local = make_and_note

    def round(self, *, evaluate: bool) -> dict[str, float]:
        """Run a round; return the seconds of its parts and its accuracies."""
        if self.seed is not None:
            torch.manual_seed(self.seed)
        data, labels = self.splits
        theirs, number, train = self.theirs, len(self.history) + 1, self.dataset["train"]
        self.logger.safe(True)
        times = [perf_counter()]
        theirs.train(train, data["train"], labels, self.federation, self.model, self.optimizer, self.logger, number)
        times.append(perf_counter())
        if self.seed is not None and not self.is_balanced(self.users):
            raise RuntimeError(f"clients {self.users} trained, which are not equally many of each level")
        done: dict[str, float] = {"train": times[1] - times[0]}
        if evaluate:
            tested = theirs.stats(train, self.model)
            times.append(perf_counter())
            theirs.test(self.dataset["test"], data["test"], labels, tested, self.logger, number)
            times.append(perf_counter())
            done |= {"moments": times[2] - times[1], "test": times[3] - times[2]}
            done |= {"accuracy": self.logger.mean["test/Global-Accuracy"] / 100}
            done |= {"local_accuracy": self.logger.mean["test/Local-Accuracy"] / 100}
        self.scheduler.step()
        self.logger.safe(False)
        self.logger.reset()
        self.history.append(done)
        if self.state:
            self.save()
        return done

    def save(self) -> None:
        """Write the state for resuming, atomically."""
        content = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}
        content |= {"splits": self.splits, "history": self.history, "random": torch.get_rng_state()}
        content["experiment"] = self.cfg["model_tag"]
        self.theirs.save(content, f"{self.state}.new")
        os.replace(f"{self.state}.new", self.state)

    def load(self) -> torch.Tensor:
        """Read the state that ``save`` wrote; return torch's random state."""
        content = sys.modules["utils"].load(self.state)
        if content["experiment"] != self.cfg["model_tag"]:
            raise ValueError(f"{self.state} holds {content['experiment']}, another experiment")
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(content[name])
        self.splits, self.history = content["splits"], content["history"]
        return content["random"]  # type: ignore[no-any-return]


def import_theirs(control: str) -> Any:
    """Import their training program, which reads settings from a file in the current folder and from ``sys.argv``."""
    sys.path[0] = os.getcwd()
    given = {"data_name": DATA, "model_name": MODEL, "device": "cpu", "control_name": control}
    sys.argv[1:] = [word for key, value in given.items() for word in (f"--{key}", value)]
    if find_spec("anytree") is None:
        sys.modules["anytree"] = types.ModuleType("anytree")  # for label hierarchies, which these data do not have
    return importlib.import_module("train_classifier_fed")


def write_data(theirs: Any, folder: Path) -> None:
    """Write the images in their format with their function."""
    with np.load("data.npz") as arrays:
        for part in ("train", "test"):
            theirs.save((arrays[f"{part}_images"], {"label": arrays[f"{part}_labels"]}), str(folder / f"{part}.pt"))
    theirs.save(({"label": None}, {"label": 10}), str(folder / "meta.pt"))


def main() -> None:
    """Run a round for each line of input."""
    warnings.simplefilter("ignore")
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # redirect what they print to stderr
        experiment = Experiment(json.loads(sys.argv[1]))
        print(json.dumps({"history": experiment.history}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(experiment.round(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
