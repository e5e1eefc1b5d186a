"""heterofl: A Flower Baseline."""

from flwr.app import UserConfig
from heterofl_flwr import Evaluation, HeteroFL, Slicing, Training
from heterofl_flwr.report import Console

from heterofl.model import model_builder


def learning_rate(config: UserConfig):
    """Return the schedule: a tenth of the learning rate from the milestone on."""
    lr, milestone = float(config["lr"]), int(config["lr-milestone"])
    return lambda server_round: lr if server_round <= milestone else lr / 10


def make_strategy(config: UserConfig) -> HeteroFL:
    """Return HeteroFL as the run config describes it."""
    return HeteroFL(
        model_builder(config["mix"]),
        config["mix"],
        slicing=Slicing(assignment=config["assignment"]),
        seed=int(config["seed"]),
        fraction_train=float(config["fraction-train"]),
        min_available_nodes=int(config["num-clients"]),
        training=Training(learning_rate=learning_rate(config)),
        evaluation=Evaluation(every=int(config["evaluate-every"])),
        callbacks=[Console()],
    )
