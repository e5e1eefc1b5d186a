"""Labels of several heads: the rows of each count for the clients that have its classes."""

import pytest
import torch
from torch import nn

from heterofl_flwr import Averaging
from heterofl_flwr.core import width
from tests.federation.tiny import adding, make_app, play

CLASSES = {0: {"main": [0, 2], "aux.weight": [1]}, 1: {"main": [2], "aux.weight": [0, 4]}}
HEADS = Averaging(label_rows=["main.weight", "aux.weight"])


class TwoHeads(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.body = nn.Linear(3, width(8, rate))
        self.main, self.aux = (nn.Linear(width(8, rate), rows, bias=False) for rows in (3, 5))


def run(classes, **options):
    app = make_app(adding(labels=classes.get, build=TwoHeads), build=TwoHeads)
    return play(app, nodes=2, build=TwoHeads, averaging=HEADS, **options)


@pytest.mark.parametrize("by_level", [(), ["aux.*"]])
def test_rows_count_for_the_classes_of_their_head(by_level):
    """Where one head had values of each level, the mean had replies that were recorded as refused."""
    found = run(CLASSES, by_level=by_level)
    assert not found.log.failures
    start = found.before
    changes = {name: (found.state[name] - start[name])[:, 0] for name in ("main.weight", "aux.weight")}
    torch.testing.assert_close(changes["main.weight"], torch.tensor([1, 0, 1.5]))
    torch.testing.assert_close(changes["aux.weight"], torch.tensor([2.0, 1, 0, 0, 2]))
