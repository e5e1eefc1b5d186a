"""Changes in fewer bits: how exact they are, against a slow twin, and what is refused on either side."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ReplyError, ShapeError
from heterofl_flwr.core import Plan
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.stages.compress import compress, restore
from tests.core import strategies

FORMS = ("float16", "int8")
SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=4)


@st.composite
def changes_of_models(draw):
    """Draw changes of a few parameters: of any shape and size, some of them 0."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    drawn = {}
    for number, shape in enumerate(draw(SHAPES)):
        size = 10.0 ** draw(st.integers(-6, 3))
        some = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        drawn[f"p{9 - number}"] = size * torch.randn(shape, generator=generator) * some
    return drawn


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def there_and_back(before, after, form, seed=0):
    return restore(Plan.between(before, before), before, *compress(before, after, form, seed=seed))


def rows_of(tensor):
    """Return the rows of a parameter one by one; a parameter of one entry a row is one row."""
    if tensor.ndim and tensor.size > len(tensor):
        return [row.reshape(-1) for row in tensor]
    return [tensor.reshape(-1)] if tensor.size else []


def slow_int8(change, draws):
    """Return steps and scales, worked out entry by entry: correct but slow."""
    scales, steps = [], []
    for row in rows_of(change.numpy()):
        scale = np.float32(max(abs(entry) for entry in row) / np.float32(127))
        scales.append(scale)
        for entry in row:
            draw = np.float32(next(draws))
            steps.append(min(math.floor(entry / scale + draw), 127) if scale else 0)
    return torch.tensor(steps, dtype=torch.int8).view(change.shape), scales


@given(changes_of_models(), st.integers(0, 99))
def test_int8_is_the_twins(drawn, seed):
    found = compress(zeros(drawn), drawn, "int8", seed=seed)
    generator = torch.Generator().manual_seed(derive(seed, "upload"))
    draws = {name: iter(torch.rand(change.numel(), generator=generator).tolist()) for name, change in drawn.items()}
    expected = {name: slow_int8(drawn[name], draws[name]) for name in sorted(drawn)}
    assert found[0].keys() == drawn.keys()
    assert all(torch.equal(found[0][name], steps) for name, (steps, _) in expected.items())
    assert found[1].tolist() == [scale for _, scales in expected.values() for scale in scales]


@given(changes_of_models())
def test_float16_errs_by_a_two_thousandth_of_the_change_at_most(drawn):
    back = there_and_back(zeros(drawn), drawn, "float16")
    for name, change in drawn.items():
        smallest = 2.0**-25  # half the distance of the smallest numbers
        assert ((back[name] - change).abs() <= (change.abs() * 2**-11).clamp(min=smallest)).all()


@pytest.mark.parametrize("form", FORMS)
@given(drawn=strategies.rounds(labels=False))
def test_a_slice_of_any_plan_comes_back(form, drawn):
    for plan, reply in zip(drawn.plans, drawn.replies, strict=True):
        before = plan.extract(drawn.state)
        back = restore(plan, drawn.state, *compress(before, reply.values, form, seed=0))
        assert list(back) == list(plan.axes)
        for name, found in back.items():
            assert found.dtype == before[name].dtype
            # Normal values differ by 8 at most; a step is a 127th of that, and the parameter itself is rounded too.
            spacing = torch.finfo(found.dtype).eps * 8
            torch.testing.assert_close(found, reply.values[name], atol=8 / 127 + spacing, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@given(drawn=changes_of_models())
def test_what_did_not_change_comes_back_to_the_bit(form, drawn):
    back = there_and_back(drawn, drawn, form)
    assert all(torch.equal(back[name], tensor) for name, tensor in drawn.items())


@pytest.mark.parametrize(("form", "size"), [("float16", 1e-4), ("int8", 1.0), ("int8", 1e-4)])
def test_a_change_in_half_precision_is_worked_out_in_single(form, size):
    before = {"w": torch.zeros(3, dtype=torch.float16)}
    after = {"w": torch.tensor([size, -size / 3, size / 127]).half()}
    back = there_and_back(before, after, form)["w"]
    assert back.dtype == torch.float16
    torch.testing.assert_close(back, after["w"], atol=size / 250, rtol=0)


@pytest.mark.parametrize(("form", "value"), [("float16", 70_000.0), ("int8", 1e300)])
def test_a_change_that_a_form_cannot_carry_is_refused_by_name(form, value):
    before = {"a": torch.zeros(2), "b": torch.zeros(3, dtype=torch.float64)}
    after = {"a": torch.ones(2), "b": torch.tensor([1.0, value, 0.0], dtype=torch.float64)}
    with pytest.raises(ReplyError, match=rf"parameter b changed by up to .*, which {form} cannot carry"):
        compress(before, after, form, seed=0)


def test_a_model_with_other_names_or_shapes_is_refused():
    before = {"w": torch.ones(2, 3), "b": torch.ones(2)}
    for after in ({**before, "w": torch.ones(1, 3)}, {"w": torch.ones(2, 3)}):  # the first could be broadcast
        with pytest.raises(ShapeError, match=r"not the one that the server sent .*expected"):
            compress(before, after, "int8", seed=0)


STATE = {"w": torch.ones(4, 3), "b": torch.ones(4)}
PLAN = Plan.between(STATE, {"w": (2, 3), "b": (2,)})
HALVES = {"w": torch.ones(2, 3, dtype=torch.float16), "b": torch.ones(2, dtype=torch.float16)}
STEPS = {"w": torch.ones(2, 3, dtype=torch.int8), "b": torch.ones(2, dtype=torch.int8)}
SCALES = torch.tensor([0.5, 1.0, 2.0])


def scales(*values, dtype=torch.float32):
    return STEPS, torch.tensor(values, dtype=dtype)


HOSTILE = {
    "int8 without scales": ((STEPS, None), "w is torch.int8, expected torch.float16"),
    "float32": (({**HALVES, "b": torch.ones(2)}, None), "b is torch.float32, expected torch.float16"),
    "NaN": (({**HALVES, "b": HALVES["b"] * torch.nan}, None), "b contains NaN or infinity"),
    "shape": (({**STEPS, "w": STEPS["w"].T}, SCALES), r"w has shape \(3, 2\), expected \(2, 3\)"),
    "few scales": (scales(1, 2), r"of shape \(2,\), expected torch.float32 of shape \(3,\)"),
    "wide scales": (scales(1, 2, 3, dtype=torch.float64), "its scales are torch.float64 .*, expected torch.float32"),
    "NaN scale": (scales(1, 2, torch.nan), "scales of w are no finite numbers from 0 up"),
    "negative scale": (scales(-1, 2, -3), "scales of b, w are no finite numbers from 0 up"),
}


@pytest.mark.parametrize(("changes", "said"), HOSTILE.values(), ids=HOSTILE)
def test_changes_that_do_not_fit_are_refused_by_name(changes, said):
    with pytest.raises(ReplyError, match=said):
        restore(PLAN, STATE, *changes)
    assert torch.equal(STATE["w"], torch.ones(4, 3))
