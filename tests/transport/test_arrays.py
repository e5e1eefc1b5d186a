"""Arrays that hold tensors: what users, Flower and the checks of replies see of them."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, strategies as st

from heterofl_flwr.transport.arrays import TensorArray, array_size, pack_tensors, read_live, read_npy, read_tensors

DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    values = torch.arange(float(np.prod(shape))).reshape(shape).to(draw(st.sampled_from(DTYPES)))
    return values.permute(draw(st.permutations(range(len(shape)))))


@given(tensors())
def test_it_is_to_everybody_the_array_of_its_tensor(tensor):
    live = pack_tensors({"weight": tensor})["weight"]
    plain = Array(tensor.contiguous())
    assert isinstance(live, TensorArray)
    assert (live.dtype, live.shape, live.stype) == (plain.dtype, plain.shape, plain.stype)
    assert np.array_equal(live.numpy(), plain.numpy())
    assert array_size(live) == len(plain.data)
    assert read_live(live) is not None  # up to here without bytes
    assert live.data == plain.data
    assert np.array_equal(live.numpy(), plain.numpy())
    assert array_size(live) == len(plain.data)


def test_flower_serialises_it_as_its_own():
    state = {"weight": torch.rand(3, 2), "bias": torch.rand(3)}
    live, plain = pack_tensors(state), ArrayRecord(dict(state))
    assert live.object_id == plain.object_id
    for mine, theirs in zip(live.values(), plain.values(), strict=True):
        assert mine.deflate() == theirs.deflate()
        assert Array.inflate(mine.deflate(), mine.children) == theirs


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda array: pickle.loads(pickle.dumps(array))])
def test_a_copy_is_a_plain_array(copied):
    live = TensorArray(torch.rand(3))
    assert type(copied(live)) is Array
    assert copied(live) == Array(live.numpy())


def test_it_is_read_without_a_copy_until_it_has_bytes():
    tensor = torch.rand(3)
    record = pack_tensors({"weight": tensor})
    assert read_tensors(record)["weight"].data_ptr() == tensor.data_ptr()
    assert record["weight"].data
    assert torch.equal(read_tensors(record)["weight"], tensor)


def test_what_a_user_does_with_its_content_stays_with_the_user():
    tensor = torch.zeros(3)
    record = pack_tensors({"weight": tensor})
    record["weight"].numpy()[:] = 1
    record.to_torch_state_dict()["weight"].fill_(1)
    assert not tensor.any()


def test_content_that_a_user_sets_replaces_the_tensor():
    array = TensorArray(torch.zeros(3))
    array.data = Array(torch.ones(3)).data
    assert np.array_equal(array.numpy(), np.ones(3, np.float32))


@pytest.mark.parametrize("dtype", ["|O", [("a", "<f4"), ("b", "|O")]])
def test_no_bytes_become_pointers_to_objects(dtype):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": (1,)})
    with pytest.raises(ValueError, match="it holds Python objects"):
        read_npy(file.getvalue() + bytes(np.dtype(dtype).itemsize))
