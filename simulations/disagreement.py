"""Measure in which layers the levels of a run disagree.

The clients train one more round from the run's newest checkpoint, with its settings; the run's folder is only read. A
level's mean is the model after that round if only the level's clients trained. The values, for each layer and two
levels, are of the entries that both hold:

    cosine       between the changes by two means: of half of one level's clients, and of half of the other level's
    halves       the same between two halves of one level's clients, averaged over both levels
    norm_ratio   norm of the change by the larger level's mean, divided by that of the smaller level's mean
    gain         difference of two accuracies, in points, of the mean of half of the smaller level's clients: with the
                 layer from half of the larger level's clients (mix: from as many clients of all levels), minus with the
                 layer from the other half of the smaller level's clients
"""

import argparse
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations, product
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, cosine_similarity

from heterofl_flwr import Aggregation, LocalGrid, Plan, RoundContext, ServerStage, Update
from heterofl_flwr.app import client_app, server_app
from heterofl_flwr.app.trust import add_trust, check_trust
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.client.state import NODE_STATES
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import write_atomic
from heterofl_flwr.core.formatting import markdown
from heterofl_flwr.core.levels import level_name, rate_of
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.renamed import from_stored
from heterofl_flwr.settings.validate import DEFAULTS, to_flat
from simulations.program import parser_of, quietly, start
from simulations.results.runs import rows_of
from simulations.results.tables import to_csv
from simulations.robust import accuracy

COLUMNS = ("layer", "larger", "smaller", "cosine", "halves", "norm_ratio", "gain")
USUAL = (
    *("server.strategy", "server.slice-rule", "server.shared", "server.by-level", "server.weights"),
    *("train.upload", "privacy.clip", "asynchronous.size"),
)
"""Settings that need their defaults, so that levels share entries and the server receives each client's parameters."""
DRAWS, EXCHANGES = 20, 2  # random halves, for cosines and for gains
MEASURED, TESTED = 500, 2500  # training examples for batch norm moments, test examples
ALL, MIX = "all", "mix"

State = Mapping[str, Tensor]
Updates = Mapping[str, Sequence[Update]]  # by level, the largest first
Values = dict[tuple[str, str, str], dict[str, float]]  # by layer, larger and smaller level


class Recording(ServerStage):
    """Stage that records a round's context, and its updates by level."""

    context: RoundContext

    def __init__(self) -> None:
        self.updates: dict[str, list[Update]] = defaultdict(list)

    def on_added(self, update: Update, context: RoundContext) -> None:
        """Record an update."""
        self.updates[level_name(update.rate)].append(update)
        self.context = context


def train(folder: RunFolder, workload: Workload) -> tuple[RoundContext, Updates]:
    """Train one more round of a run, and return its context and its updates."""
    checkpoint, strategy, recording = folder.load_checkpoint(), server_app.make_strategy(workload, ()), Recording()
    strategy.chain.stages += (recording,)
    with tempfile.TemporaryDirectory() as states:
        if folder.clients.exists():
            shutil.copytree(folder.clients, states, dirs_exist_ok=True)
        with LocalGrid(
            client_app.app,
            checkpoint.dealt,
            cohort=workload.cohort,
            by_rate=not workload.mixes_rates,
            run_config=to_flat(workload.settings),
            node_config=lambda partition: {NODE_STATES: states},
        ) as grid:
            strategy.start(grid, num_rounds=checkpoint.server_round + 1, resume=checkpoint)
    updates = dict(sorted(recording.updates.items(), key=lambda item: -rate_of(item[0])))
    if few := [level for level, replies in updates.items() if len(replies) < 2]:
        raise ConfigError(f"{folder.path} has one client at {', '.join(few)}; expected two or more, for halves")
    return recording.context, updates


def mean(context: RoundContext, updates: Iterable[Update]) -> State:
    """Return the global model after a round with these updates alone."""
    aggregation = Aggregation(context.state, context.rows, extra_rows=context.extra_rows)
    for update in updates:
        aggregation.add(update.plan, update.tensors, labels=update.labels)
    return aggregation.result()


def layers(plan: Plan) -> dict[str, Plan]:
    """Return the plan of each layer, and of all layers."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in plan.axes:
        names[name.rpartition(".")[0]].append(name)
    return {layer: Plan({name: plan.axes[name] for name in members}) for layer, members in names.items()} | {ALL: plan}


def halves(updates: Updates, draws: int) -> Iterator[dict[str, list[list[Update]]]]:
    """Yield the updates of two random halves of each level's clients, several times."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        orders = (torch.randperm(len(replies), generator=generator).tolist() for replies in updates.values())
        pairs = zip(updates.items(), orders, strict=True)
        yield {level: [[replies[i] for i in order[k::2]] for k in (0, 1)] for (level, replies), order in pairs}


def mean_halves(context: RoundContext, halves: Mapping[str, Sequence[Sequence[Update]]]) -> dict[str, list[State]]:
    """Return the mean of each half."""
    return {level: [mean(context, half) for half in both] for level, both in halves.items()}


def compare(context: RoundContext, updates: Updates) -> Values:
    """Return the cosines, as means over random halves, and the ratios of norms."""

    def change(part: Plan, *states: State) -> Tensor:  # (states, entries)
        parts = (part.extract(state).values() for state in (context.state, *states))
        before, *after = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in parts)
        return torch.stack(after) - before

    means, values = {level: mean(context, replies) for level, replies in updates.items()}, Values()
    draws = [mean_halves(context, draw) for draw in halves(updates, DRAWS)]
    for larger, smaller in combinations(updates, 2):
        for layer, part in layers(updates[smaller][0].plan).items():
            norms = change(part, means[larger], means[smaller]).norm(dim=1)
            changes = torch.stack([change(part, *draw[larger], *draw[smaller]) for draw in draws])
            cosines = cosine_similarity(changes[:, None], changes[:, :, None], 3).mean(0)  # (4, 4)
            values[layer, larger, smaller] = {
                "cosine": float(cosines[:2, 2:].mean()),
                "halves": float(cosines[0, 1] + cosines[2, 3]) / 2,
                "norm_ratio": float(norms[0] / norms[1]),
            }
    return values


def exchange(context: RoundContext, updates: Updates, workload: Workload) -> Values:
    """Return the gains, as means over random halves."""
    data, gains = workload.dataset, defaultdict[tuple[str, str, str], list[float]](list)
    images = data.train.inputs[:MEASURED], data.test.select(torch.arange(len(data.test))[:TESTED])
    for draw in halves(updates, EXCHANGES):
        # As many clients as in a half of one level.
        draw[MIX] = [[update for both in draw.values() for update in both[k][:: len(draw)]] for k in (0, 1)]
        means = mean_halves(context, draw)
        for (number, level), k in product(enumerate(updates), (0, 1)):
            plan, model = updates[level][0].plan, workload.build(rate_of(level))
            entries = plan.extract(means[level][k])
            for layer, part in layers(plan).items():
                before = accuracy(model, {**entries, **part.extract(means[level][1 - k])}, *images)
                for larger in (*list(updates)[:number], MIX):
                    after = accuracy(model, {**entries, **part.extract(means[larger][k])}, *images)
                    gains[layer, larger, level].append(100 * (after - before))
    return {key: {"gain": fmean(differences)} for key, differences in gains.items()}


def table(files: Iterable[Path]) -> str:
    """Return the table of these files, with means: of two levels ``cosine (halves)``, of the mix ``gain``."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in chain.from_iterable(map(rows_of, files)):
        for name in filter(row.get, COLUMNS[3:]):
            values[row["layer"], row["larger"], row["smaller"]][name].append(float(row[name]))
    pairs = sorted(dict.fromkeys(key[1:] for key in values), key=lambda pair: MIX in pair)
    rows = []
    for layer in dict.fromkeys(key[0] for key in values):
        means = ({name: fmean(some) for name, some in values[layer, *pair].items()} for pair in pairs)
        forms = ("{cosine:.2f} ({halves:.2f})" if MIX not in pair else "{gain:+.1f}" for pair in pairs)
        rows.append([layer, *(form.format(**mean_values) for form, mean_values in zip(forms, means, strict=True))])
    return markdown(("layer", *map(", ".join, pairs)), rows, "---:")


def run(options: argparse.Namespace) -> int:
    """Measure a run, write the values and print their table."""
    folder = RunFolder(options.run)
    settings = from_stored(folder.settings())
    config = to_flat(settings)
    check_trust(config, options.run, trusted=options.trust)
    wrong = [f"{key} is {config[key]!r} (expected {DEFAULTS[key]!r})" for key in USUAL if config[key] != DEFAULTS[key]]
    wrong += ["server.stages has secure-sum (expected none)"] if "secure-sum" in settings.server.stages else []
    wrong += [f"mix is {settings.mix} (expected two levels or more)"] if len(settings.mix.rates) < 2 else []
    if wrong:
        raise ConfigError(f"the levels of {options.run} cannot be compared: {'; '.join(wrong)}")
    everyone = {"sample.fraction": 1.0, "sample.spare": 0.0, "evaluate.every": 0, "run.dir": "", "run.resume": False}
    workload = load_workload({**config, **everyone})
    context, updates = train(folder, workload)
    compared, gains = compare(context, updates), exchange(context, updates, workload)
    rows = [
        {**dict(zip(COLUMNS, key, strict=False)), **{name: f"{value:.4g}" for name, value in numbers.items()}}
        for key, numbers in ((key, compared.get(key, {}) | gain) for key, gain in gains.items())
    ]
    write_atomic(options.out, to_csv(COLUMNS, rows).encode())
    clients = ", ".join(f"{len(replies)} at {level}" for level, replies in updates.items())
    print(f"round {context.server_round}; clients: {clients}\n\n{table([options.out])}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = parser_of("simulations.disagreement", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run with a checkpoint")
    parser.add_argument("--out", type=Path, default="runs/disagreement.csv", metavar="CSV", help="default: %(default)s")
    add_trust(parser)
    with quietly():
        return start(parser, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
