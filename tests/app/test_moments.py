"""What static batch norm is measured on: the batches that the authors' pass over the training data would see."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict

from heterofl_flwr import messages as wire
from heterofl_flwr.app import client_app
from heterofl_flwr.app.task import Task, task_of
from heterofl_flwr.data import Split
from heterofl_flwr.grids import LocalGrid
from heterofl_flwr.settings import from_flat

NON_IID = {"data.split": "non-iid-2", "train.batch-size": 5}


def _classes_by_batch(task, partition=0):
    """Return the classes in each batch of a client's moments, which it reads by the numbers of its examples."""
    split, _, classes = task.part(partition, 20)
    assert len(classes) == 2
    numbers = torch.arange(len(split), dtype=torch.float32)[:, None, None, None]
    by_number = Split(numbers, split.targets, reading=None)
    batches = [batch.flatten().long() for batch in task.moments_batches(by_number, seed=3)]
    assert sorted(torch.cat(batches).tolist()) == list(range(len(split)))
    return [split.targets[batch].unique().tolist() for batch in batches]


def test_batches_mix_the_classes_of_a_client_whose_data_lie_class_by_class():
    stored = _classes_by_batch(
        Task(from_flat(NON_IID | {"fidelity.moments": "fixed", "evaluate.moments-batch-size": 5}))
    )
    mixed = _classes_by_batch(Task(from_flat(NON_IID)))
    assert sum(len(classes) == 2 for classes in stored) <= 1
    assert sum(len(classes) == 2 for classes in mixed) > len(mixed) / 2


@pytest.mark.parametrize(("moments", "varied"), [("paper", True), ("fixed", False)])
def test_images_are_varied_as_in_training_where_the_authors_vary_them(monkeypatch, moments, varied):
    task = Task(from_flat({"fidelity.moments": moments}))
    split, _, _ = task.part(0, 20)
    monkeypatch.setitem(task.__dict__, "facts", type(task.facts)((1, 8, 8), 10, "crop-flip"))
    found = torch.cat(list(task.moments_batches(split, seed=1)))
    assert (sorted(found.sum((1, 2, 3)).tolist()) != sorted(split.inputs.sum((1, 2, 3)).tolist())) == varied


def test_the_batches_are_a_function_of_the_round():
    settings = {"train.batch-size": 5}
    parameters = dict(task_of(settings).build(1.0).named_parameters())

    def answer(grid, server_round):
        config = {
            wire.SEED: 0,
            wire.GLOBAL_RATE: 1.0,
            wire.SERVER_ROUND: server_round,
            wire.PARTITION: 2,
            wire.MOMENTS_KIND: "paper",
            wire.RATE: 1.0,
            wire.RATES: [1.0],
        }
        content = RecordDict({wire.ARRAYS: ArrayRecord(parameters), wire.CONFIG: wire.new_config(config)})
        (reply,) = grid.send_and_receive([Message(content, list(grid.get_node_ids())[2], wire.QUERY_MOMENTS)])
        return next(iter(wire.unpack_moments(reply.content[wire.MOMENTS], 1.0, "it").layers.values())).second

    with LocalGrid(client_app.app, 20, run_config=settings) as grid:
        first, again, later = answer(grid, 1), answer(grid, 1), answer(grid, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
