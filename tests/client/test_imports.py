"""A client that has imported modules of another app, as with the SuperLink of an earlier ``flwr run``."""

import importlib
import sys

import pytest
from flwr.app import Message, RecordDict

from heterofl_flwr.classic import properties_of
from heterofl_flwr.client.queries import answer_capability
from heterofl_flwr.common.errors import ConfigError, RoundError
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.compat import ensure_identity
from tests.federation.tiny import add_one, make_app, node_context, play

NAMES = ("imported_app", "imported_app.client", "imported_app.task")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Return the folder of the SuperLink and the one of the app, in the order of ``sys.path``; each has the app."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    both = tmp_path / "superlink", tmp_path / "home" / "apps" / "me.app.1.0.0.12345678"
    for folder in both:
        (folder / "imported_app").mkdir(parents=True)
        for name in ("__init__", "client", "task"):
            (folder / "imported_app" / f"{name}.py").write_text("rate = 1\n")
    monkeypatch.setattr(sys, "path", [*map(str, both), *sys.path])
    yield both
    for name in NAMES:
        sys.modules.pop(name, None)


def answer(context):
    ensure_identity()
    query = Message(RecordDict(), dst_node_id=7, message_type=messages.QUERY_CAPABILITY)
    return dict(answer_capability(query, context).content["config"])


BOTH_APIS = answer, properties_of


def partitions():
    """Return the partition that a client reports in each API."""
    return [ask(node_context(partition_id=3))[messages.PARTITION] for ask in BOTH_APIS]


@pytest.mark.parametrize("changed", ["client", "task"])
def test_modules_of_another_app_are_an_error(folders, changed):
    other, app = folders
    (app / "imported_app" / f"{changed}.py").write_text("rate = 0.5\n")
    assert partitions() == [3, 3]  # nothing of the app is imported
    for name in NAMES:
        importlib.import_module(name)
    file = other / "imported_app" / f"{changed}.py"
    for ask in BOTH_APIS:
        with pytest.raises(ConfigError, match=rf"runs code of another app: .* and {file} there differ") as caught:
            ask(node_context())
        assert f"({app})" in str(caught.value)


def test_equal_modules_and_those_of_the_app_are_no_error(folders, monkeypatch):
    other, app = folders
    (app / "random.py").write_text("not the one of Python")
    for name in NAMES:
        importlib.import_module(name)
    assert partitions() == [3, 3]
    (other / "imported_app" / "client.py").write_text("rate = 0.25  # edited during the run")
    assert partitions() == [3, 3]
    monkeypatch.setattr(sys, "path", [str(app), str(other), *sys.path[2:]])
    (app / "imported_app" / "task.py").write_text("rate = 0.5\n")
    for name in NAMES:
        importlib.reload(sys.modules[name])
    assert partitions() == [3, 3]


def test_a_module_that_training_imports_is_compared_before_the_reply(folders):
    def train(message, context):
        importlib.import_module("imported_app.client")
        return add_one(message, context)

    (folders[1] / "imported_app" / "client.py").write_text("rate = 0.5\n")
    with pytest.raises(RoundError, match=r"the client runs code of another app: .*client\.py there differ"):
        play(make_app(train), "a1", 2)
