"""Options that are invalid: each is named with what was found and what is expected."""

import math

import pytest

from heterofl_flwr import Adagrad, Adam, Evaluation, FedH2L, HeteroFL, Limits, Momentum, Privacy, Robust, Yogi
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.nodes import Capability
from tests.federation.tiny import build

CLIP, NOISE = Privacy(clip=1), Privacy(clip=1, noise=1)
ROBUST_MOMENTS, BODY = Evaluation(moments_merge="robust"), ("hidden.*",)
COUNT = "a whole number of 1 or more, or a share between 0 and 1"
DECAY = "expected 0 or more, and less than 1"
INVALID = [
    (Evaluation, {"every": -1}, "every is -1, expected a whole number from 0 up"),
    (Evaluation, {"nodes": "some"}, "nodes is 'some', expected all or capable"),
    (Evaluation, {"levels": "first"}, "levels is 'first', expected True, False or 'last'"),
    (Evaluation, {"moments_merge": "median"}, "moments_merge is 'median', expected auto, mean or robust"),
    (Limits, {"norm_bound": -1}, "limits: norm_bound is -1"),
    (Limits, {"norm_bound": math.nan}, "limits: norm_bound is nan"),
    (Limits, {"examples": 0, "refusals": -1}, "limits: examples is 0, .*; refusals is -1"),
    (Privacy, {"clip": -1}, "privacy: clip is -1"),
    (Privacy, {"noise": 1.0}, "privacy: clip is 0.0, expected a number above 0 where there is noise"),
    (Privacy, {"clip": 1, "noise": math.nan}, "privacy: noise is nan"),
    (Privacy, {"delta": 0, "moments_clip": 0}, "privacy: delta is 0, .*; moments_clip is 0"),
    (Momentum, {"server_momentum": 1.0}, f"server_momentum is 1.0, {DECAY}"),
    (Momentum, {"server_learning_rate": 0.0}, "server_learning_rate is 0.0, expected a number over 0"),
    (Adam, {"beta_1": 1.0, "eta": -1.0}, "eta is -1.0, expected a number over 0; beta_1 is 1.0"),
    (Yogi, {"beta_2": -0.1}, f"beta_2 is -0.1, {DECAY}"),
    (Adagrad, {"tau": 0.0}, "tau is 0.0, expected a number over 0"),
    (FedH2L, {"classes": 1}, "classes is 1, expected 2 or more"),
    (FedH2L, {"classes": 3, "seed_batch": 20, "seed_size": 10}, "seed_batch is 20, expected 1 up to seed_size, 10"),
    (FedH2L, {"classes": 3, "temperature": 0}, "temperature is 0, expected a number above 0"),
    (FedH2L, {"classes": 3, "temperature": math.inf}, "temperature is inf, expected a number above 0"),
    (FedH2L, {"classes": 3, "seed_size": 10, "seed_batch": 5, "privacy": CLIP}, "FedH2L exchanges posteriors"),
    (FedH2L, {"classes": 3, "spare": 0.5}, "clients learn from all others"),
    (FedH2L, {"classes": 3, "robust": Robust()}, "share no parameters"),
    (Capability, {"num_examples": -1}, "-1 examples are not possible"),
    (Capability, {"partition": -1}, "partition -1 does not exist"),
    (Capability, {"num_partitions": 0}, "0 partitions are not possible"),
    (Capability, {"capacity": math.nan}, "nan is no rate"),
]
STRATEGY = [
    ({"fraction_train": 0.0}, "fraction_train is 0.0"),
    ({"fraction_evaluate": 1.5}, "fraction_evaluate is 1.5"),
    ({"assignment": "random"}, "assignment is 'random'"),
    ({"seed": 2**63}, "seed is 9223372036854775808; expected less than 2"),
    ({"mix": "a1-z1"}, "'z' is no level"),
    ({"upload": "int4"}, "upload is 'int4', expected one of float32, float16, int8"),
    ({"roll_by": 2}, "roll_by is 2, expected slice_rule='rolling' beside it"),
    ({"slice_rule": "rolling", "roll_by": 1.5}, r"roll_by is 1\.5, expected an integer of 1 or more"),
    ({"slice_rule": "random"}, "slice_rule is 'random', expected one of prefix, rolling, random-level, random-client"),
    ({"weights": "size"}, "weights is 'size', expected one of equal, examples"),
    ({"arrayrecord_key": "moments"}, "arrayrecord_key is 'moments', expected a name other than arrays, "),
    ({"configrecord_key": "arrays"}, "configrecord_key is 'arrays', expected a name other than"),
    ({"arrayrecord_key": "x", "configrecord_key": "x"}, "expected another name than arrayrecord_key"),
    ({"weighted_by_key": ""}, "weighted_by_key is '', expected a name"),
    ({"min_train_nodes": -1}, "min_train_nodes is -1, expected a whole number from 0 up"),
    *(
        ({"min_replies": own}, f"min_replies is {own!r}; expected 'auto', {COUNT}")
        for own in (0, -1, True, 0.0, 1.0, 1.5, math.nan, "half")
    ),
    ({"wait": math.nan}, "wait is nan, expected a number of 0 or more"),  # it would never end
    *(({"spare": own}, "expected a number of 0 or more") for own in (-0.1, math.nan, math.inf)),
    ({"stages": [Adam(), Momentum()]}, "ServerOptimizer: two stages have this name"),
    ({"shared": BODY, "assignment": "dynamic"}, "parameters that are not shared stay with a client"),
    ({"shared": BODY, "slice_rule": "rolling"}, "parameters that are not shared stay with a client"),
    ({"privacy": NOISE, "weights": "examples"}, "expected weights='equal'"),
    *(({"privacy": own, "limits": Limits(norm_bound=1)}, r"expected limits\.norm_bound=0") for own in (CLIP, NOISE)),
    ({"privacy": NOISE, "evaluation": ROBUST_MOMENTS}, r"expected evaluation\.moments_merge='auto'"),
    ({"privacy": NOISE, "robust": Robust()}, "robust=None"),
    ({"robust": Robust(), "weights": "examples"}, "weights='equal'"),
    ({"robust": Robust(), "shared": ()}, "share no parameters"),
    ({"mix": "b1-c1", "global_rate": 1.0}, "with slice_rule='prefix' nobody trains the rest; expected rolling"),
    ({"mix": "b1-c1", "global_rate": "c", "slice_rule": "rolling"}, r"largest of the mix b1-c1: expected 0\.5 or more"),
]


@pytest.mark.parametrize(("kind", "options", "fault"), INVALID)
def test_an_invalid_group_of_options_is_an_error_that_names_them(kind, options, fault):
    with pytest.raises(ConfigError, match=fault):
        kind(**options)


@pytest.mark.parametrize(("options", "fault"), STRATEGY)
def test_an_invalid_option_of_a_strategy_is_an_error_that_names_it(options, fault):
    with pytest.raises(ConfigError, match=fault):
        HeteroFL(build, **options)
