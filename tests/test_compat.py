"""What differs between versions of Flower: stand-ins for old ones, and a warning above the newest that was tested."""

import io
import json
import logging
import re
import time
import warnings
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from heterofl_flwr.federation.round_record import ROUND, RoundRecord
from heterofl_flwr.transport import compat
from heterofl_flwr.transport.compat import connect_length_check, get_nodes, has_runtime_client, runtime_client
from tests.flower_internals import ConsoleHandler

ROOT = Path(__file__).parents[1]
PUBLIC = {"app", "client", "client.mod", "clientapp", "clientapp.mod", "common", "simulation"}
PUBLIC |= {"server", "server.client_manager", "server.client_proxy", "server.strategy", "server.workflow"}
PUBLIC |= {"serverapp", "serverapp.exception", "serverapp.strategy"}


class OldGrid:
    """Before Flower 1.35 the grid of a SuperLink spoke gRPC; before 1.38 no grid had ``get_nodes``."""

    _stub = "the stub"

    def get_node_ids(self):
        return [3, 5]


class NewGrid:
    """As from Flower 1.38."""

    def __init__(self, hooks):
        self._http = SimpleNamespace(_client=SimpleNamespace(event_hooks=hooks))

    @property
    def _runtime_client(self):
        return self._http

    def get_nodes(self):
        return [SimpleNamespace(node_id=3, name="alice")]


def test_no_other_module_imports_what_is_not_public_in_flower():
    found = {}
    for path in (own for folder in ("heterofl_flwr", "simulations", "tests") for own in (ROOT / folder).rglob("*.py")):
        modules = re.findall(r"^ *from (flwr\.[\w.]+) import ", path.read_text(encoding="utf-8"), re.MULTILINE)
        if private := {own for own in modules if own.removeprefix("flwr.") not in PUBLIC}:
            found[str(path.relative_to(ROOT))] = private
    assert sorted(found) == ["heterofl_flwr/transport/compat.py", "tests/flower_internals.py"]


def test_versions_up_to_the_newest_tested_pass_without_a_warning():
    with warnings.catch_warnings(record=True) as caught:
        compat.warn_if_untested((1, 32))
        compat.warn_if_untested(compat.NEWEST_TESTED)
    assert not caught


def test_a_newer_flower_is_a_warning_that_names_both_versions():
    major, minor = compat.NEWEST_TESTED
    with pytest.warns(UserWarning, match=rf"1\.32 to {major}\.{minor}, and this is Flower {major}\.{minor + 1}"):
        compat.warn_if_untested((major, minor + 1))


def test_nodes_of_an_old_grid_have_ids_and_no_names():
    assert [(node.node_id, getattr(node, "name", "")) for node in get_nodes(OldGrid())] == [(3, ""), (5, "")]
    assert [(node.node_id, node.name) for node in get_nodes(NewGrid({}))] == [(3, "alice")]


def test_the_client_of_a_superlinks_grid_is_found():
    new = NewGrid({})
    assert runtime_client(OldGrid()) == "the stub"
    assert runtime_client(new) is new._runtime_client
    assert [has_runtime_client(grid) for grid in (OldGrid(), new, object())] == [True, True, False]


def test_lengths_are_known_before_an_answer_is_read():
    lengths, hooks = [], {"response": ["another"]}
    assert connect_length_check(NewGrid(hooks), lengths.append)
    assert hooks["response"][0] == "another"
    hooks["response"][1](SimpleNamespace(headers={"content-length": "12"}))
    hooks["response"][1](SimpleNamespace(headers={}))
    assert lengths == [12, 0]
    assert not connect_length_check(OldGrid(), lengths.append)


def test_a_rounds_log_line_has_its_numbers_in_strict_json(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(logging.getLogger("flwr"), "handlers", [ConsoleHandler(stream=written)])
    compat.set_log_format("json")
    record = RoundRecord(server_round=3, seconds=1.5, learning_rate=0.1, rates={0: 0.5}, train={"loss": float("nan")})
    logging.getLogger("flwr").info("[ROUND 3/3] took 1.5s", extra={ROUND: record})
    (line,) = (json.loads(line, parse_constant=pytest.fail) for line in written.getvalue().splitlines())
    assert (line["message"], line["round"]["server_round"]) == ("[ROUND 3/3] took 1.5s", 3)
    assert (line["round"]["rates"], line["round"]["train"]) == ({"0": 0.5}, {"loss": "nan"})


def test_log_lines_are_json_objects_with_the_traceback(monkeypatch):
    written = io.StringIO()
    handler = ConsoleHandler(stream=written)
    monkeypatch.setattr(logging.getLogger("flwr"), "handlers", [handler])
    compat.set_log_format("json")
    try:
        raise ValueError("a 'quoted' cause")
    except ValueError:
        logging.getLogger("flwr").exception('round %d: "camera"\nis away', 3)
    (line,) = map(json.loads, written.getvalue().splitlines())
    assert (line["level"], line["logger"]) == ("ERROR", "flwr")
    assert line["message"].startswith('round 3: "camera"\nis away\nTraceback')
    assert "a 'quoted' cause" in line["message"]
    assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 600
