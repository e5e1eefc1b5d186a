"""What hypothesis draws for the tests of the core."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from heterofl_flwr.core import Aggregation, Axis, CountingMean, Plan, prefix, width
from tests.core import twin


@st.composite
def axis(draw, full=None):
    """Draw an axis of one or more parts, each of which keeps a prefix or chosen positions."""
    full = full or draw(st.sampled_from([1, 2, 3, 4, 6]))
    parts = draw(st.sampled_from([parts for parts in (1, 2, 3) if full % parts == 0]))
    kept = draw(st.integers(0, full // parts))
    subsets = st.permutations(range(full // parts)).map(lambda order: tuple(sorted(order[:kept])))
    return Axis(full, kept * parts, parts, draw(st.one_of(st.none(), subsets)))


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

    def result(self, order=None, aggregator=CountingMean):
        """Return the new state of an aggregation."""
        aggregation = Aggregation(self.state, aggregator=aggregator, **self.options)
        for number in range(len(self.plans)) if order is None else order:
            reply = self.replies[number]
            aggregation.add(self.plans[number], reply.values, labels=reply.labels, weight=reply.weight)
        return aggregation.result()

    def expected(self, mean=twin.counting_mean, *arguments):
        """Return what the twin makes of it."""
        fewest = min((len(self.state[name]) for name in self.options["label_rows"]), default=0)
        return mean(self.state, self.replies, *arguments, **self.options, classes=fewest)


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SLICE_FUNCTIONS = (prefix, twin.rolling(1), twin.scattered(1), twin.scattered(2))
WEIGHTS = st.sampled_from([1.0, 1.0, 0.0, 0.1, 3, 250.5])
SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=3)
"""Of each axis of a parameter, the length of a part and the number of parts."""


@st.composite
def rounds(draw, most=5, labels=True, functions=SLICE_FUNCTIONS, weights=WEIGHTS):
    """Draw a round: any shapes, parts, rates or arbitrary slices, label sets, weights, dtypes, functions."""
    sizes = {f"p{number}": draw(SIZES) for number in range(draw(st.integers(1, 3)))}
    rows = [name for name, own in sizes.items() if own and labels and draw(st.booleans())]
    fewest = min((sizes[name][0][0] * sizes[name][0][1] for name in rows), default=0)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtypes = {name: draw(st.sampled_from(DTYPES)) for name in sizes}

    def random(name, shape):
        return torch.randn(shape, generator=generator).to(dtypes[name])

    state = {name: random(name, [size * parts for size, parts in own]) for name, own in sizes.items()}
    plans, replies = [], []
    for _ in range(draw(st.integers(0, most))):
        named = draw(st.booleans()) if rows else False
        rate = draw(st.sampled_from([None, 1.0, 0.5, 0.25, 0.3]))
        function = draw(st.sampled_from(functions))
        held = {}
        for name in [name for name in sizes if draw(st.sampled_from([True, True, True, False]))]:
            kept = [width(size, rate) if rate else draw(st.integers(0, size)) for size, _ in sizes[name]]
            if named and name in rows:
                kept[0] = sizes[name][0][0]
            pairs = zip(sizes[name], kept, strict=True)
            held[name] = tuple(Axis(size * parts, few * parts, parts).sliced(function) for (size, parts), few in pairs)
        plans.append(Plan(held))
        given = draw(st.lists(st.integers(0, fewest - 1), max_size=4)) if named else None
        values = {name: random(name, shape) for name, shape in plans[-1].shapes.items()}
        places = {name: twin.held(axes) for name, axes in held.items()}
        replies.append(twin.Reply(places, values, given, draw(weights)))
    return Round(state, {"label_rows": rows, "extra_rows": draw(st.booleans())}, plans, replies)


def three_replies():
    """Return a round with label rows, the plan of its second client, and three good replies to it."""
    generator = torch.Generator().manual_seed(0)
    full = {"body": (4, 4), "linear.weight": (5, 4), "linear.bias": (5,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in full.items()}
    plan = Plan.between(full, {"body": (2, 2), "linear.weight": (5, 2), "linear.bias": (5,)})
    replies = [{name: torch.randn(shape, generator=generator) for name, shape in plan.shapes.items()} for _ in range(3)]
    return state, plan, replies
