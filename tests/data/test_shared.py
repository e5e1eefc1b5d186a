"""A data set that processes of one machine share: whose pages they map, what remains, what happens without room."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from heterofl_flwr.data import load_dataset
from heterofl_flwr.data.load import _load, shared_dataset
from heterofl_flwr.data.shared import VARIABLE, find, share
from tests.data.files import image_folder, write_table
from tests.test_files import files_of_at_most

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory is shared so on Linux alone"),
    pytest.mark.usefixtures("fresh"),
]

OTHER = """
import sys
from pathlib import Path
from heterofl_flwr.data import load_dataset

data = load_dataset(sys.argv[1])
print(*{line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if "/memfd:heterofl-" in line})
print(float(data.train.inputs.sum()), data.train.targets.tolist(), data.names, data.normal)
data.train.inputs.zero_()
"""


def inode_of(tensor):
    """Return the inode of the shared memory in which a tensor lies, or None."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(address, 16) for address in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.split()[4] if "/memfd:heterofl-" in line else None
    return None


def memories(pid="[0-9]*"):
    """Return the shared memory that processes have open, of all that may be seen."""
    targets = set()
    for link in Path("/proc").glob(f"{pid}/fd/*"):
        with suppress(OSError):  # of another user, or gone
            targets.add(os.readlink(link))
    return {target for target in targets if target.startswith("/memfd:heterofl-")}


def test_another_process_maps_the_pages_and_changes_none(tmp_path):
    name = str(image_folder(tmp_path))
    data = load_dataset(name)
    before = data.train.inputs.clone()
    with shared_dataset(name):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", OTHER, name]
        inodes, values = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()
        assert inode_of(data.train.inputs) == inode_of(data.test.targets) == inodes
    assert values == f"{float(before.sum())} {data.train.targets.tolist()} {data.names} {data.normal}"
    assert torch.equal(data.train.inputs, before)


def posts(folder):
    """Write a text of two owners."""
    columns = {"user": ["u1", "u2"] * 8, "text": ["many words " * 40] * 16}
    write_table(folder / "posts" / "train.parquet", columns)
    return {"name": "posts", "root": folder, "owner": "user"}


def table(folder):
    """Write a table with class names."""
    columns = {"a": [0.1, 2.0] * 6, "b": [3, 4] * 6, "kind": ["ä", "z"] * 6}
    write_table(folder / "train.parquet", columns)
    return {"name": str(folder), "label": "kind"}


@pytest.mark.parametrize("make", [posts, table, lambda folder: {"name": "digits"}], ids=["text", "table", "digits"])
def test_all_values_are_equal(tmp_path, make):
    arguments = make(tmp_path)
    expected = tree_leaves(astuple(load_dataset(**arguments)))
    with shared_dataset(**arguments):
        _load.cache_clear()
        data = load_dataset(**arguments)
        assert inode_of(data.train.inputs) == inode_of(data.test.targets) is not None
        leaves = tree_leaves(astuple(data))
        assert (data.train.targets is data.train.inputs) == (data.train.reading is not None)
    assert len(leaves) == len(expected)
    for value, other in zip(leaves, expected, strict=True):
        assert type(value) is type(other)
        if isinstance(value, Tensor):
            assert value.dtype == other.dtype
            assert torch.equal(value, other)
            assert value.data_ptr() % 64 == 0
        else:
            assert value == other


def test_neither_another_data_set_nor_other_memory_is_taken():
    data = load_dataset("digits")
    with share(data, "digits"):
        shared = os.environ[VARIABLE]
        path, _, token = shared.partition(" ")
        assert find("digits").names == data.names
        assert find("others") is None
        for value in (f"{path} {token[::-1]}", f"/proc/self/fd/99999 {token}", f"{sys.executable} {token}"):
            os.environ[VARIABLE] = value
            assert find("digits") is None
        os.environ[VARIABLE] = shared
    assert find("digits") is None


def test_without_room_each_process_loads_and_one_warning_says_why(caplog):
    expected, before = load_dataset("digits").train.inputs.clone(), memories("self")  # that of tests before this one
    with files_of_at_most(4096):
        shares = shared_dataset("digits")
        shares.__enter__()
    assert [record.message for record in caplog.records] == [
        "each process loads the data set digits, because it cannot be shared: [Errno 27] File too large"
    ]
    assert VARIABLE not in os.environ
    assert memories("self") == before
    assert torch.equal(load_dataset("digits").train.inputs, expected)
    shares.__exit__(None, None, None)


def test_a_users_function_is_called_in_each_process(tmp_path, monkeypatch):
    (tmp_path / "users_images.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with shared_dataset("users_images:make"):
        assert VARIABLE not in os.environ


HOLDER = """
import os, time
from heterofl_flwr.data.load import shared_dataset
with shared_dataset("digits"):
    print(os.environ["HETEROFL_SHARED"], flush=True)
    time.sleep(600)
"""


def test_memory_ends_with_a_killed_process():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", HOLDER], env=environment, stdout=subprocess.PIPE, text=True) as holder:
        path = holder.stdout.readline().partition(" ")[0]
        memory = os.readlink(path)
        assert memory in memories()
        holder.send_signal(signal.SIGKILL)
    assert memory not in memories()
