"""Which method a run is, and what tells apart the runs of one method."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from heterofl_flwr.core.sharing import ALL
from heterofl_flwr.settings import Flat, Settings, to_flat
from heterofl_flwr.settings.presets import architectures
from simulations.published.jobs import FREE, short_mix
from simulations.published.runs import Run

OF_CHOICE: Mapping[str, str] = {
    "prefix": "HeteroFL",
    "rolling": "FedRolex",
    "random-level": "random slices by level",
    "random-client": "Federated Dropout",
}

EXCHANGES: Mapping[str, str] = {"fedh2l": "FedH2L", "hybrid": "HeteroFL and FedH2L"}


@dataclass(frozen=True, slots=True)
class Contestant:
    """The finished runs of one method with one choice of settings, over seeds.

    Attributes
    ----------
    label
        Method and mix, and what else tells it from others of the same method.
    runs
        A run for each seed, in their order.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def settings(self) -> Settings:
        """What all runs have in common, but for the seed."""
        return self.runs[0].settings


def method_of(settings: Settings) -> str:
    """Return the name of a method."""
    server = settings.server
    if server.strategy in EXCHANGES:
        return EXCHANGES[server.strategy]
    if server.shared != ALL:
        return "LG-FedAvg" if server.shared else "Standalone"
    if settings.train.ordered_dropout:
        return "FjORD"
    if server.weights == "examples" and len(settings.mix.rates) == 1:
        return "FedAvg"
    return OF_CHOICE[server.choose]


def contestants(runs: Iterable[Run]) -> dict[tuple[str, str], list[Contestant]]:
    """Return finished runs by data and split, and there by what they have in common beside the seed."""
    found: dict[tuple[str, str], dict[tuple[tuple[str, Flat], ...], dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if run.finished:
            alike = found.setdefault((run.job.data, run.job.split), {})
            alike.setdefault(tuple(_identity(run.settings).items()), {})[run.seed] = run
    return {place: _labelled(list(groups.values())) for place, groups in found.items()}


def _labelled(groups: Sequence[Mapping[int, Run]]) -> list[Contestant]:
    """Give groups of runs different labels; a later run of a seed has taken the place of an earlier one."""
    sorted_runs = [tuple(group[seed] for seed in sorted(group)) for group in groups]
    plain = [_plain(runs[0].settings) for runs in sorted_runs]
    made = []
    for label, runs in zip(plain, sorted_runs, strict=True):
        namesakes = [other[0].settings for other, own in zip(sorted_runs, plain, strict=True) if own == label]
        made.append(Contestant(f"{label}{_difference(runs[0].settings, namesakes)}", runs))
    return sorted(made, key=lambda one: one.label)


def _plain(settings: Settings) -> str:
    name = "+".join(architectures(settings)) or settings.model.name
    return f"{method_of(settings)} {short_mix(settings.mix)}, {name}"


def _difference(own: Settings, namesakes: Sequence[Settings]) -> str:
    """Return the settings in which runs of one method and mix differ."""
    flats = [_identity(settings) for settings in namesakes]
    mine = _identity(own)
    differing = [key for key in mine if len({flat[key] for flat in flats}) > 1]
    return "".join(f", {key}={mine[key]}" for key in differing)


def _identity(settings: Settings) -> dict[str, Flat]:
    """Return what makes runs of one contestant equal."""
    return {key: value for key, value in to_flat(settings).items() if not key.startswith(FREE)}
