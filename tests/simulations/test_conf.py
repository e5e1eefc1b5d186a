"""conf/: every file composes, every job of every experiment can be run, and the paper's jobs are all there, once."""

from collections.abc import Mapping
from itertools import groupby, zip_longest
from operator import itemgetter
from types import MappingProxyType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from heterofl_flwr.app.request import WINDOW
from heterofl_flwr.app.sweep.blocks import combine_blocks
from heterofl_flwr.app.sweep.command import CONF
from heterofl_flwr.app.sweep.job import LAUNCH
from heterofl_flwr.app.workload import Workload
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.auto_values import PRESETS
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.validate import DEFAULTS, from_flat
from simulations.results.paper import DATA, Job, job_of, read_cells
from tests.simulations.sweeping import EXPERIMENTS, composed, merged, planned

OF_SWEEPS = {"debug", "experiment", "hparams_search", "hydra"}  # which change no setting of a job by themselves
GROUPS = sorted({path.name for path in CONF.iterdir() if path.is_dir()} - OF_SWEEPS)
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
PAIRS = 10 * 9 + 4  # ten pairs of levels from 10 to 90 %, and the larger ones alone


def settings_of(*overrides: str) -> list[Settings]:
    return [own.settings for own in planned(*overrides).values()]


def published(*overrides: str) -> set[Job]:
    return {job_of(settings) for settings in settings_of(*overrides)}


def test_the_defaults_are_those_of_the_settings():
    found = composed()
    settings = {key: value for key, value in found.items() if key not in LAUNCH}
    usual = {**DEFAULTS, "engine.window": WINDOW}  # as in heterofl run
    assert {key: repr(value) for key, value in settings.items()} == {key: repr(own) for key, own in usual.items()}
    assert found.keys() - settings.keys() == LAUNCH.keys()


ROWS = list(zip_longest(*([*own] for _, own in groupby(OPTIONS, itemgetter(0)))))


def choices(row: tuple[tuple[str, str] | None, ...]) -> list[str]:
    return [f"{group}={option}" for group, option in filter(None, row)]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_each_option_composes_to_usable_settings(row):
    """An option of each group at once, the first of each, then the second: Hydra takes 0.2 s to compose any."""
    found = composed(*choices(row))
    assert found.keys() == DEFAULTS.keys() | LAUNCH.keys()
    settings = from_flat({key: value for key, value in found.items() if key not in LAUNCH})
    assert settings.model.name in MODELS


@pytest.mark.parametrize("row", ROWS[:2], ids=range(2))
def test_jobs_are_planned_from_what_hydra_composes(row):
    assert merged(*choices(row)) == composed(*choices(row))


def test_debug_shortens_each_job_of_an_experiment():
    jobs = planned("experiment=table1", "debug=default", "seed=0").values()
    assert len(jobs) == NUMBERS["table1"]
    assert {(own.settings.num_rounds, own.settings.train.epochs, own.clients) for own in jobs} == {(2, 1, 10)}


def test_each_data_set_and_each_model_has_an_option():
    options = {group: {name for own, name in OPTIONS if own == group} for group in GROUPS}
    assert options["data"] == PRESETS.keys()
    assert options["model"] == {"auto", *MODELS}


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
@pytest.mark.parametrize("method", ["depthfl", "scalefl"])
def test_the_levels_of_a_method_that_cuts_stages_have_four_depths(method, data):
    (settings,) = settings_of(f"data={data}", f"method={method}")
    build = Workload(settings).build
    assert [len(build(rate).exits) for rate in settings.mix.rates] == [4, 3, 2, 1]


@pytest.mark.parametrize(("experiment", "decay"), [("depthfl-cifar100", 0.001), ("fiarse-cifar10", 0.0)])
def test_the_settings_of_other_papers_tables_have_their_hyperparameters(experiment, decay):
    for settings in settings_of(f"experiment={experiment}"):
        train = settings.train
        assert (train.momentum, train.weight_decay, train.clip) == (0, decay, 0)
        assert (train.mask_fill, train.labels) == ("none", "none")


NUMBERS = {f"table{number}": jobs for number, jobs in {1: 24, 2: 24, 3: 12, 4: 34, 5: 50, 7: 62, 8: 62, 9: 31}.items()}
NUMBERS |= {f"figure{number}": PAIRS for number in range(2, 9)}
NUMBERS |= {"figure9": 4 * 2 * 2, "figure10": 4 * 2 * 2, "figure11": 4 * 2}
NUMBERS |= {"baselines": 2 * 2 * 3, "choice": 2 * 2 * 3 * 2 * 4, "clipping": 3 * 6 * 2, "compare": 3 * 2 * (4 * 2 + 4)}
NUMBERS |= {
    "depth": 2 * 5,
    "family": 2 * 11 + 3,
    "family-cifar10": 13,
    "family-cifar10-long": 9,
    "lora": 2 + 2,
    "mask-fill": 2 * 4 * 3,
}
NUMBERS |= {"ratio": 2 * 2 * 7, "search": 36, "depthfl-cifar100": 6, "fiarse-cifar10": 3, "race": 2}
NUMBERS |= {"all": 31 * 5 + 10 * 9 * 5 + (17 - 3) * 2 + (25 - 3) * 2}
QUICK = {"table1", "figure2", "choice", "lora"}
LONG = {"all", "baselines", "compare", "depth", "family", "family-cifar10", "search"}  # seconds to compose
MARKS = {own: [] if own in QUICK else pytest.mark.release if own in LONG else pytest.mark.slow for own in EXPERIMENTS}


@pytest.mark.parametrize("experiment", [pytest.param(own, marks=marks) for own, marks in MARKS.items()])
def test_each_experiment_has_so_many_jobs_that_can_be_run(experiment):
    jobs = planned(f"experiment={experiment}").values()
    assert len(jobs) == NUMBERS[experiment]
    ours = {"digits", "cifar100", *(f"heterofl_flwr.experiments.{name}:load" for name in ("lora", "small_mnist"))}
    assert {own.settings.data.name for own in jobs} <= {*DATA, *ours}


@pytest.mark.slow
def test_all_has_each_job_of_the_paper_once_and_no_other():
    every = [name for name in EXPERIMENTS if name.startswith(("table", "figure"))]
    assert set().union(*(planned(f"experiment={name}") for name in every)) == planned("experiment=all").keys()
    assert len(published("experiment=all")) == len(planned("experiment=all"))


@pytest.mark.slow
def test_each_number_that_the_paper_prints_has_a_job(shared):
    cells = read_cells(shared / "paper")
    tables: Mapping[str, set[Job]] = {number: published(f"experiment=table{number}") for number in "45789"}
    assert len(cells) == 217 + 134
    assert [cell for cell in cells if cell.job not in tables[cell.table]] == []
    assert {cell.job for cell in cells} == set().union(*tables.values())


SINGLE = {"mix": "a,e", "norm": "none,sbn"}
MIXED = {"mix": "a-e", "norm": "none", "scaler": False}


def rows(blocks, *given, params=MappingProxyType({})):
    named = {str(number): block for number, block in enumerate(blocks)}
    return [" ".join(row) for row in combine_blocks(OverridesParser.create(), named, params, given)]


@pytest.mark.parametrize(
    ("blocks", "given", "expected"),
    [
        ([SINGLE, MIXED], [], ["a none", "a sbn", "e none", "e sbn", "a-e none False"]),
        ([{"part": SINGLE}, {"mix": "e", "deep": MIXED}], ["norm=none"], ["a none", "e none", "a-e none False"]),
        ([SINGLE, MIXED], ["norm=none", "mix=a,a-e"], ["a none", "a-e none False"]),
        ([SINGLE, MIXED], ["scaler=false"], ["a-e none False"]),
        ([SINGLE, {"mix": "e", "norm": "in"}], ["norm=gn"], ["a gn", "e gn"]),
        ([MIXED], ["seed=0,1"], ["a-e none False 0", "a-e none False 1"]),
        ([], ["mix=a,e", "seed=range(0,2)"], ["a 0", "a 1", "e 0", "e 1"]),
        ([], [], [""]),
    ],
)
def test_rows_are_all_combinations_within_each_block(blocks, given, expected):
    found = [" ".join(text.partition("=")[2] for text in row.split()) for row in rows(blocks, *given)]
    assert found == expected


def test_params_replace_values_of_blocks_and_pick_none():
    found = rows([SINGLE, MIXED], "mix=e", params={"norm": "sbn", "seed": 7})
    assert found == ["mix=e norm=sbn seed=7"]


@pytest.mark.parametrize(
    ("blocks", "given", "text"),
    [
        ([SINGLE], ["mix=e,b"], "mix=e is in the experiment and mix=b is not"),
        ([SINGLE, MIXED], ["mix=a", "scaler=false"], "no row of the experiment has mix=a and sca"),
        ([], ["lr=interval(0,1)"], "search over an interval needs hparams_search=optuna"),
    ],
)
def test_what_gives_no_rows_raises(blocks, given, text):
    with pytest.raises(ConfigError, match=text):
        rows(blocks, *given)
