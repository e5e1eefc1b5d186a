"""Checks for settings that contradict other settings."""

from collections.abc import Iterable, Mapping
from itertools import chain

from heterofl_flwr.core.slice_rules import NESTED_RULES
from heterofl_flwr.nn.depth import read_levels
from heterofl_flwr.nn.exits import BLOCKS
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.auto_values import model_has
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.value_types import AUTO

_NO_EXITS = (
    "but the model has no exits that this app knows: expected model.shrink to name depths, and one of this package's "
    "image models with stages; one of yours needs an app of your own (heterofl_flwr.training.exit_losses)"
)


Contradiction = tuple[str, object, str]
"""Key of a setting; a value that is true if the setting contradicts others; the reason, with the expected value."""


def find_contradictions(settings: Settings, values: Mapping[str, object], defaults: Mapping[str, object]) -> list[str]:
    """Return an error message for each setting that contradicts other settings.

    ``values`` maps dotted keys to the assigned values, and ``defaults`` to the default values. Both may contain
    ``auto``; in ``settings``, ``auto`` is replaced.
    """
    fedh2l_rules, unused = (rules(settings, values, defaults) for rules in (_fedh2l_rules, unused_rules))
    rules = chain(_model_rules(settings, values), _server_rules(settings), fedh2l_rules, unused)
    return [f"{key}: found {values[key]!r}, {why}" for key, wrong, why in rules if wrong]


def _model_rules(settings: Settings, values: Mapping[str, object]) -> Iterable[Contradiction]:
    model, server = settings.model.name, settings.server
    options = {option: values[f"model.{option}"] for option in ("norm", "hidden")}
    train, levels = settings.train, read_levels(settings.model.shrink)
    is_known = model in MODELS or ":" in model  # other names are no models, as a later error says
    has_exits = levels is not None and BLOCKS.get(model) == "exits.*"
    return (
        *((f"model.{option}", value not in (AUTO, "", "none") and is_known and not model_has(model, option),
           f"but the model {model} has no such option; expected '{AUTO}'") for option, value in options.items()),
        ("model.scaler", not settings.model.scaler and is_known and not model_has(model, "scaler"),
         f"but the model {model} has no such option; expected true"),
        ("model.shrink", levels is not None and model not in BLOCKS,
         f"but model.name is {model}; expected one of {', '.join(BLOCKS)}, or 'width'"),
        ("model.shrink", levels is not None and server.strategy != "heterofl",
         f"but server.strategy is {server.strategy}; expected 'width'"),
        ("server.slice-rule", levels == {} and server.slice_rule != "prefix",
         "but with model.shrink=depth smaller models have all channels of their stages; expected 'prefix'"),
        ("model.ensemble", settings.model.ensemble and not has_exits, _NO_EXITS),
        ("train.exits", train.exits != "last" and not has_exits, _NO_EXITS),
        ("train.exits", train.exits != "last" and train.distill != "none",
         f"but train.distill={train.distill} trains the models inside a client's own; expected 'last'"),
    )  # fmt: skip


def _server_rules(settings: Settings) -> Iterable[Contradiction]:
    server, devices, sample = settings.server, settings.devices, settings.sample
    moves = server.strategy == "heterofl" and server.slice_rule not in NESTED_RULES
    return (
        ("devices.profile", devices.profile and server.strategy == "fedh2l",
         "but with server.strategy=fedh2l the exchange of posteriors is not simulated; expected ''"),
        ("devices.deadline", devices.deadline and not devices.profile,
         "expected devices.profile to name the devices too"),
        ("sample.spare", sample.spare and server.strategy != "heterofl",
         f"but with server.strategy={server.strategy} clients learn from all others; expected 0"),
        ("server.by-level", server.by_level and settings.train.distill != "none",
         f"but train.distill={settings.train.distill} trains smaller levels inside a client's model; expected ''"),
        ("server.slice-rule", moves and settings.train.distill != "none",
         f"but train.distill={settings.train.distill} trains the first channels of a client's slice, which are no "
         f"smaller level's where slices move; expected {' or '.join(map(repr, NESTED_RULES))}"),
        ("run.resume", settings.run.resume and not settings.run.dir,
         "expected run.dir to name the folder of the run to go on with"),
    )  # fmt: skip


TRAVELS = (
    *("assignment", "train.upload", "train.proximal", "train.distill"),
    *("server.slice-rule", "server.shared", "server.by-level", "server.growth"),
    *("server.stages", "server.robust", "server.aggregator", "server.norm-bound", "privacy.clip", "asynchronous.size"),
)
"""Settings about the exchange of parameters. FedH2L exchanges no parameters, so these must have their defaults.

``server.weights`` may differ, because ``conf/method/fedh2l.yaml`` includes FedAvg's settings, which change it.
"""


def _fedh2l_rules(
    settings: Settings, values: Mapping[str, object], defaults: Mapping[str, object]
) -> Iterable[Contradiction]:
    for key in TRAVELS if settings.server.strategy == "fedh2l" else ():
        usual = defaults[key]
        yield key, values[key] != usual, f"but with server.strategy=fedh2l no parameters travel; expected {usual!r}"


def unused_rules(
    settings: Settings, values: Mapping[str, object], defaults: Mapping[str, object]
) -> Iterable[Contradiction]:
    """Yield the settings that are not read because of another setting."""
    train, server, fedh2l = settings.train, settings.server, settings.server.strategy == "fedh2l"
    inner, exits = train.distill not in ("none", "ordered"), train.exits != "last"  # ordered: labels alone
    teaching = "train.distill=all, sandwich or drawn"
    for is_used, by, keys in (
        (fedh2l, "server.strategy=fedh2l", "distill.models distill.seed-size distill.seed-batch distill.steps"),
        (fedh2l, "server.strategy=fedh2l", "distill.labels"),
        (fedh2l or inner or exits, f"{teaching}, train.exits or fedh2l", "distill.temperature distill.weight"),
        (inner, teaching, "distill.label-share"),
        (exits, "train.exits", "distill.ramp"),
        (not fedh2l, "server.strategy=heterofl", "global-rate"),
        (server.slice_rule == "rolling", "server.slice-rule=rolling", "server.roll-by"),
        (server.robust != "none", "server.robust", "server.robust-few"),
        (server.robust == "trimmed", "server.robust=trimmed", "server.robust-trim"),
        (server.slice_rule == "important", "server.slice-rule=important", "server.rank-every server.rank-margin"),
        (settings.asynchronous.size, "asynchronous.size", "asynchronous.staleness asynchronous.clocks"),
        (settings.privacy.noise, "privacy.noise", "privacy.delta privacy.moments-clip"),
        (settings.evaluate.every, "evaluate.every above 0", "evaluate.metric evaluate.moments-batch-size"),
        (settings.engine.name != "plain", "engine.name=auto, cohort or seats", "engine.cohort"),
    ):
        for key in () if is_used else keys.split():
            why = f"which has no effect without {by}; expected {defaults[key]!r}, or {by} with it"
            yield key, values[key] != defaults[key], why
