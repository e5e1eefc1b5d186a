"""Options that are invalid or do not go together: each is named with what was found and what is expected."""

import math

import pytest

from heterofl_flwr import (
    Adam,
    Buffered,
    DistillOptions,
    Evaluation,
    FedDyn,
    HeteroFL,
    Limits,
    MovingAverage,
    Privacy,
    Robust,
    Slicing,
    Training,
)
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import CountingMean
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.stages.secure_sum import SecureSum
from heterofl_flwr.stages.server_optimizer import Nesterov
from tests.federation.grouped import grouped
from tests.federation.tiny import build

CLIP, NOISE = Privacy(clip=1), Privacy(clip=1, noise=1)
BODY = ("hidden.*",)
INVALID = [
    (Evaluation, {"every": -1}, "Evaluation: every is -1, expected an integer of 0 or more"),
    (Limits, {"norm_bound": -1, "examples": 0}, "Limits: norm_bound is -1, .*; examples is 0"),
    *((Training, {"learning_rate": own, "milestones": [2]}, "expected learning_rate to be") for own in (None, float)),
    (Privacy, {"noise": 1.0}, "Privacy: clip is 0.0, expected a number above 0 where there is noise"),
    (Adam, {"beta_1": 1.0, "eta": -1.0}, "eta is -1.0, expected a number above 0; beta_1 is 1.0"),
    (Nesterov, {"momentum": math.nan}, "Nesterov: momentum is nan, expected a number of 0 or more, and less than 1"),
    (Buffered, {"size": 3, "concurrency": 2}, "concurrency is 2, expected size, 3, or more"),
    *((Buffered, {own: 2}, f"{own} is 2, and size is 0") for own in ("bound", "quota")),
    (Buffered, {"concurrency": 2}, "concurrency is 2, and size is 0"),  # which would mean rounds of a fraction
    *((Limits, {"partitions": own}, "different names with a number each") for own in ({"a": 1, "b": 1}, "a=1,b")),
    *((Limits, {"partitions": {"a": own}}, "different names with a number each") for own in (-1, "x")),
    *((Slicing, {own: 9}, f"{own} is 9.*, expected slice_rule='important'") for own in ("rank_every", "rank_margin")),
    (Slicing, {"roll_by": 9, "slice_rule": "important"}, "roll_by is 9, expected slice_rule='rolling'"),
    (DistillOptions, {"seed_batch": 20, "seed_size": 10}, "seed_batch is 20, expected 1 up to seed_size, 10"),
    (Limits, {"largest_level": "z"}, "Limits: largest_level: 'z' is no level"),
    (
        Capability,
        {"capacity": 1.5, "partition": -1},
        "capacity: a rate of 1.5 is not usable: .*; partition is -1",
    ),
]
STRATEGY = [
    *(({"seed": own}, f"seed is {own!r}; expected an integer of less than 2") for own in (2**63, 1.5, "x", True)),
    ({"limits": {"norm_bond": 1}}, r"limits is {'norm_bond': 1}, expected Limits\(\.\.\.\), or leave it out"),
    (
        {"slice_rule": "random"},
        "slice_rule is 'random', expected one of prefix, important, rolling, random-level, random-client",
    ),
    ({"wait": math.nan}, "wait is nan, expected a number of 0 or more"),  # it would never end
    ({"shared": BODY, "assignment": "dynamic"}, "parameters that are not shared stay with a client"),
    *(({"privacy": own, "limits": Limits(norm_bound=1)}, r"expected limits\.norm_bound=0") for own in (CLIP, NOISE)),
    ({"shared": "hidden.*"}, r"shared is 'hidden\.\*', expected patterns of parameters"),
    *(
        ({"shared": (), **own}, r"shared is \(\), so there are no")
        for own in ({"proximal_mu": 1.0}, {"stages": [Adam()]})
    ),
    ({"stages": [Adam]}, r"stages has <class .*Adam'>, expected a list of stages, such as \[Adam\(\)\]"),
    ({"stages": Adam()}, r"stages is .*, expected a list of stages, such as \[Adam\(\)\]"),
    ({"privacy": None}, r"privacy is None, expected Privacy\(\.\.\.\), or leave it out"),
    ({"mix": "a1-x1", "assignment": "dynamic"}, "some clients take no part, always the same ones"),
    *(
        (
            {"mix": "b1-c1", "global_rate": 1.0, "slice_rule": own},
            f"with slice_rule='{own}' nobody trains the rest; expected one of rolling, random-level, random-client",
        )
        for own in ("prefix", "important")
    ),
    ({"mix": "b1-c1", "global_rate": "c", "slice_rule": "rolling"}, r"largest of the mix b1-c1: expected 0\.5 or more"),
]


class Other(CountingMean):
    """A mean of one's own."""


class Joint(CountingMean):
    """A mean whose entries depend on one another."""

    by_entry = False


CONFLICTS = {
    "growth": ({"growth": 2}, [({"shared": BODY}, "growth=0"), ({"stages": [FedDyn()]}, "growth=0")]),
    "important": (
        {"slice_rule": "important"},
        [({"shared": BODY}, "slice_rule='prefix'"), ({"stages": [FedDyn()]}, "slice_rule='prefix'")],
    ),
    "moving": (
        {"aggregator": Joint},
        [({"slice_rule": rule}, "but an entry of this aggregator's mean") for rule in ("rolling", "random-level")],
    ),
    "by_level": (
        {"by_level": ["hidden.bias"]},
        [
            ({"by_level": ["nothing.*"]}, r"no parameter matches nothing"),
            ({"slice_rule": "rolling"}, "slice_rule='prefix'"),
            ({"shared": BODY}, "all parameters shared"),
            ({"asynchronous": Buffered(size=2, concurrency=2)}, "asynchronous"),
            ({"stages": [SecureSum()]}, "SecureSum hides"),
            *(({"stages": [own]}, f"by_level: {type(own).__name__}") for own in (FedDyn(), MovingAverage())),
            *(({"privacy": own}, "by_level: privacy.clip") for own in (CLIP, NOISE)),
            ({"upload": "int8"}, "by_level: training.upload"),
            ({"limits": Limits(norm_bound=1.0)}, "by_level: limits.norm_bound"),
            ({"robust": Robust()}, "LevelParameters needs the counting mean"),
        ],
    ),
    "FedDyn": (
        {"stages": [FedDyn()]},
        [
            ({"assignment": "dynamic"}, "the state of FedDyn stays with a client, which must then keep its slice"),
            ({"shared": BODY}, "the state of FedDyn stays with a client, for all parameters"),
            ({"weights": "examples"}, "FedDyn needs a mean in which each client counts once"),
        ],
    ),
    "asynchronous": (
        {"asynchronous": Buffered(size=2, concurrency=2)},
        [
            *(
                (own, "robust means, other aggregators, slices that move and spare clients need rounds that wait")
                for own in (
                    *({"slice_rule": rule} for rule in ("rolling", "important")),
                    *({"robust": Robust()}, {"spare": 0.5}, {"aggregator": Other}),
                )
            ),
            ({"stages": [SecureSum()]}, "SecureSum"),
            (
                {"stages": [FedDyn()]},
                r"FedDyn needs the counting mean; expected rounds that wait \(asynchronous.size=0\)",
            ),
            ({"privacy": NOISE}, "Noise needs the counting mean"),
            ({"asynchronous": Buffered(size=5, concurrency=5, quota=2)}, "for 3 levels is 6 replies"),
            ({"min_replies": 3}, r"min_replies is 3, expected asynchronous.size, 2, or fewer"),
            ({"asynchronous": 5}, r"asynchronous is 5, expected Buffered\(...\)"),
        ],
    ),
}


@pytest.mark.parametrize(
    ("options", "fault"), [({**base, **own}, fault) for base, rows in CONFLICTS.values() for own, fault in rows]
)
def test_what_does_not_go_together_is_refused(options, fault):
    with pytest.raises(ConfigError, match=fault):
        HeteroFL(build, **grouped({"mix": "a1-b1-c1", **options}))


@pytest.mark.parametrize(("kind", "options", "fault"), INVALID)
def test_an_invalid_group_of_options_is_named(kind, options, fault):
    with pytest.raises(ConfigError, match=fault):
        kind(**options)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: Adam(0.1, 0.9, 0.99, 1e-3, 7), "Adam: found .* without names; expected at most eta, beta_1, beta_2"),
        (lambda: Privacy(1.0), r"Privacy: found \(1.0,\) without names; expected options by name alone"),
    ],
)
def test_a_value_without_a_name_is_not_lost(make, fault):
    with pytest.raises(TypeError, match=fault):
        make()


@pytest.mark.parametrize(("options", "fault"), STRATEGY)
def test_an_invalid_option_of_a_strategy_is_named(options, fault):
    with pytest.raises(ConfigError, match=fault):
        HeteroFL(build, **grouped(options))
