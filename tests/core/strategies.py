"""What hypothesis draws for the tests of the core."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from heterofl_flwr.core import Aggregator, Axis, Plan, prefix, width
from tests.core import twin


def subsets(size, number):
    """Draw ``number`` ascending positions below ``size``."""
    return st.permutations(range(size)).map(lambda order: tuple(sorted(order[:number])))


@st.composite
def axis(draw, full=None):
    """Draw an axis of one or more parts, each of which keeps a prefix or chosen positions."""
    full = full or draw(st.sampled_from([1, 2, 3, 4, 6]))
    parts = draw(st.sampled_from([parts for parts in (1, 2, 3) if full % parts == 0]))
    kept = draw(st.integers(0, full // parts))
    index = draw(st.one_of(st.none(), subsets(full // parts, kept)))
    return Axis(full, kept * parts, parts, index)


def axes(most=4):
    """Draw the axes of a parameter of up to ``most`` dimensions."""
    return st.lists(axis(), max_size=most).map(tuple)


@dataclass(frozen=True)
class Round:
    """A global state, and the replies of some clients as the aggregator and as its twin take them."""

    state: dict[str, torch.Tensor]
    options: dict[str, object]
    plans: list[Plan]
    replies: list[twin.Reply]

    def aggregator(self):
        """Return a new aggregator of this round's settings."""
        return Aggregator(self.state, **self.options)

    def expected(self):
        """Return the twin's new state, and which of its entries somebody held."""
        state, options = self.state, self.options
        fewest = min((len(state[name]) for name in options["label_rows"]), default=0)
        return twin.counting_mean(state, self.replies, **{**options, "classes": options["classes"] or fewest})

    def result(self, order=None):
        """Return the aggregator's new state."""
        aggregator = self.aggregator()
        for number in range(len(self.plans)) if order is None else order:
            reply = self.replies[number]
            aggregator.add(self.plans[number], reply.values, labels=reply.labels, weight=reply.weight)
        return aggregator.result()


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SLICE_FUNCTIONS = (prefix, twin.rolling(1), twin.scattered(1), twin.scattered(2))
WEIGHTS = st.sampled_from([1.0, 1.0, 0.0, 0.1, 3, 250.5])


def _parameter():
    """Draw the (length of a part, number of parts) of each axis of one parameter."""
    return st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=3)


@st.composite
def _kept(draw, sizes, rate, whole_rows):
    """Draw how much of each part of each axis a client keeps: its rate's share, or anything."""
    kept = [width(size, rate) if rate else draw(st.integers(0, size)) for size, _ in sizes]
    return [sizes[0][0], *kept[1:]] if whole_rows else kept


@st.composite
def rounds(draw, most=5, labels=True, functions=SLICE_FUNCTIONS, weights=WEIGHTS):
    """Draw a round: any shapes, parts, rates or arbitrary slices, label sets, weights, dtypes, functions."""
    parameters = {f"p{number}": draw(_parameter()) for number in range(draw(st.integers(1, 3)))}
    rows = [name for name, sizes in parameters.items() if sizes and labels and draw(st.booleans())]
    fewest = min((parameters[name][0][0] * parameters[name][0][1] for name in rows), default=0)
    options = {
        "label_rows": rows,
        "classes": draw(st.one_of(st.none(), st.integers(1, fewest))) if rows else None,
        "extra_rows": draw(st.booleans()),
    }
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtypes = {name: draw(st.sampled_from(DTYPES)) for name in parameters}
    full = {name: tuple(size * parts for size, parts in sizes) for name, sizes in parameters.items()}
    state = {name: torch.randn(full[name], generator=generator).to(dtypes[name]) for name in parameters}
    # A pattern has one axis; more stars make another pattern of the same name.
    heads = {
        f"{name}{'*' * axis}": (parts, axis)
        for name, sizes in parameters.items()
        for axis, (_, parts) in enumerate(sizes)
    }
    plans, replies = [], []
    for _ in range(draw(st.integers(0, most))):
        named = draw(st.booleans()) if rows else False
        held = [name for name in parameters if draw(st.sampled_from([True, True, True, False]))]
        rate = draw(st.sampled_from([None, 1.0, 0.5, 0.25, 0.3]))
        slice_function = draw(st.sampled_from(functions))
        kept = {name: draw(_kept(parameters[name], rate, named and name in rows)) for name in held}
        places = {
            name: tuple(
                twin.positions(size * parts, few * parts, parts, None if few == size else slice_function(size, few))
                for (size, parts), few in zip(parameters[name], kept[name], strict=True)
            )
            for name in held
        }
        local = {name: tuple(map(len, places[name])) for name in held}
        known = {pattern: head for pattern, head in heads.items() if pattern.rstrip("*") in held}
        plans.append(Plan.between(full, local, heads=known, slice_function=slice_function))
        values = {name: torch.randn(local[name], generator=generator).to(dtypes[name]) for name in held}
        classes = options["classes"] or fewest
        given_labels = draw(st.lists(st.integers(0, classes - 1), max_size=4)) if named else None
        replies.append(twin.Reply(places, values, given_labels, draw(weights)))
    return Round(state, options, plans, replies)


def three_replies():
    """Return a round with label rows, the plan of its second client, and three good replies to it."""
    generator = torch.Generator().manual_seed(0)
    full = {"body": (4, 4), "linear.weight": (5, 4), "linear.bias": (5,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in full.items()}
    plan = Plan.between(full, {"body": (2, 2), "linear.weight": (5, 2), "linear.bias": (5,)})
    replies = [{name: torch.randn(shape, generator=generator) for name, shape in plan.shapes.items()} for _ in range(3)]
    return state, plan, replies
