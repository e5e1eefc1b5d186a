"""``LocalGrid`` at its edges: Flower's identity, closing, arguments that are refused."""

import gc

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids import LocalGrid


def set_identity(value):
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = value


def test_flowers_identity_is_lent_and_given_back():
    before = vars(TaskIdentity)["_run_id"], vars(TaskIdentity)["_node_id"], vars(TaskIdentity)["_task_id"]
    try:
        for outer in (None, 5):
            set_identity(outer)
            first, second = LocalGrid(ClientApp(), 1, seed=1), LocalGrid(ClientApp(), 1, seed=2)
            assert Message(RecordDict(), 3, "train").metadata.src_node_id == SUPERLINK_NODE_ID
            first.close()
            assert TaskIdentity.run_id == second.run.run_id
            second.close()
            assert vars(TaskIdentity)["_run_id"] == vars(TaskIdentity)["_node_id"] == outer
    finally:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = before


def test_a_closed_grid_takes_no_messages(ask):
    with LocalGrid("odd_clients:app", 1) as grid:
        message = ask(next(iter(grid.get_node_ids())), "configs")
    grid.close()  # again
    with pytest.raises(HeteroFLError, match="closed"):
        grid.send_and_receive([message])


def test_a_forgotten_grid_gives_the_identity_back():
    before = vars(TaskIdentity)["_run_id"]
    grid = LocalGrid(ClientApp(), 1)
    assert vars(TaskIdentity)["_run_id"] == grid.run.run_id
    del grid
    gc.collect()
    assert vars(TaskIdentity)["_run_id"] == before


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_nodes": 0}, "num_nodes is 0; expected an integer of 1 or more"),
        ({"num_nodes": "3"}, "num_nodes is '3'"),
        ({"processes": -1}, "processes is -1; expected an integer of 0 or more"),
        ({"client_app": "odd_clients"}, "expected a ClientApp or 'module:attribute'"),
        ({"client_app": ":app"}, "expected a ClientApp or 'module:attribute'"),
        ({"client_app": None}, "client_app is None"),
        ({"client_app": "no_such_module:app"}, "No module named 'no_such_module'"),
        ({"client_app": "odd_clients:no_such_app"}, "no attribute 'no_such_app'"),
        ({"client_app": "odd_clients:not_an_app"}, "is a int; expected a ClientApp"),
        ({"node_config": lambda partition: {"rates": [1.0]}}, r"node_config\(0\)\['rates'\] is \[1.0\]"),
        ({"run_config": {"lr": None}}, r"run_config\['lr'\] is None; expected a bool, an int, a float or a str"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused(changes, complaint):
    arguments = {"client_app": "odd_clients:app", "num_nodes": 2, **changes}
    with pytest.raises(ConfigError, match=complaint):
        LocalGrid(**arguments)


def test_a_message_to_a_stranger_is_refused(grid, ask):
    with pytest.raises(ConfigError, match="goes to node 12; expected one of this grid's 4 nodes"):
        grid.push_messages([ask(12, "configs")])


def test_what_the_module_raises_is_not_hidden():
    with pytest.raises(RuntimeError, match="no data set here"):
        LocalGrid("raises_on_import:app", 1)
