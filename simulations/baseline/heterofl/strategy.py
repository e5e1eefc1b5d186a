"""heterofl: A Flower Baseline."""

from flwr.app import UserConfig
from heterofl_flwr import Evaluation, HeteroFL, Slicing, Training
from heterofl_flwr.report import Console

from heterofl.model import model_builder


def make_strategy(config: UserConfig) -> HeteroFL:
    """Return HeteroFL as the run config describes it."""
    lr, milestone = float(config["lr"]), int(config["lr-milestone"])
    return HeteroFL(
        model_builder(config["mix"]),
        config["mix"],
        slicing=Slicing(assignment=config["assignment"]),
        seed=int(config["seed"]),
        fraction_train=float(config["fraction-train"]),
        min_available_nodes=int(config["num-clients"]),
        training=Training(learning_rate=lr, milestones=[milestone]),
        evaluation=Evaluation(every=int(config["evaluate-every"])),
        callbacks=[Console()],
    )
