"""What is read from files and settings: any text, and files of which any bytes are others."""

import math
from contextlib import contextmanager, suppress

import pytest
import torch
from hypothesis import example, given, strategies as st

from heterofl_flwr import Mix
from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.validate import DEFAULTS, from_flat, to_flat
from tests.hostile import changes as to

WORDS = [
    *["a", "1", "b9", "-", "--", "x", ".", "0.5", "1.0x1", "0", "e999999999", "z1", "nan"],
    "9" * 50,
    "\x00",
    "\u0661",
]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=5).map("".join)


@given(odd=st.dictionaries(st.sampled_from(list(DEFAULTS)) | texts, to.anything | texts, min_size=1, max_size=4))
@example(odd={"mix": "a1", "seed": 10**400})
@example(odd={"server.robust": "trimmed", "server.robust-trim": math.nan})
def test_settings_are_refused_or_can_be_written_back(odd):
    with suppress(ConfigError):
        settings = from_flat({**DEFAULTS, **odd})
        assert from_flat(to_flat(settings)) == settings


@given(text=texts)
@example(text="a1-a-b")
@example(text="a" + "9" * 5000)
def test_a_mix_is_refused_or_sound(text):
    with suppress(ConfigError):
        mix = Mix.parse(text)
        assert all(0 < rate <= 1 for rate in mix.rates)
        assert math.isclose(sum(mix.shares), 1)
        assert min(mix.counts) > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run of two rounds, whose state is the number of the round."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    run.start({"seed": 0})
    for number in (1, 2):
        run.append(RoundRecord(server_round=number, seconds=1.0, learning_rate=0.1, rates={0: 1.0}))
        run.save_checkpoint(RunState(server_round=number, state={"w": torch.full((2, 2), float(number))}))
    return run


@contextmanager
def damaged(path, edits):
    """Let some bytes of a file be others."""
    good = path.read_bytes()
    path.write_bytes(to.damage(edits, good))
    try:
        yield
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["checkpoint/round-000002.json", "checkpoint/round-000002.safetensors"])
@given(edits=to.edits)
@example(edits=[(0.0, 10**6, b"")])
@example(edits=[(0.5, 10**6, b"")])
@example(edits=[(0.0, 10**6, b"[" * 90_000)])
@example(edits=[(0.0, 10**6, b"null")])
@example(edits=[(0.999, 1, b"!")])  # the last byte of a tensor: the checksum alone tells
def test_of_a_damaged_checkpoint_the_one_before_is_left(run, name, edits):
    with damaged(run.path / name, edits):
        found = run.load_checkpoint()
        assert torch.equal(found.state["w"], torch.full((2, 2), float(found.server_round)))


@pytest.mark.parametrize("name", ["settings.json", "history.jsonl"])
@given(edits=to.edits)
@example(edits=[(0.0, 10**6, b"[]")])
@example(edits=[(0.0, 10**6, b'{"settings": 1, "about": {}}')])
def test_a_damaged_run_folder_is_read_or_refused(run, name, edits):
    with damaged(run.path / name, edits), suppress(HeteroFLError):
        assert run.settings() is not run.about()
        assert len(run.history()) <= 2
        assert run.load_checkpoint().server_round <= 2
