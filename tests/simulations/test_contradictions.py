"""What ``docs/explain/paper.md`` says of the paper is so: checked in the paper's text and tables, number by number."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from heterofl_flwr.nn.models import PAPER
from simulations.results.paper import BASELINES, read_cells, rows_of

PAGE = Path(__file__).parents[2] / "docs" / "explain" / "paper.md"
IMAGES = ("mnist", "cifar10")


@pytest.fixture(scope="module")
def said() -> str:
    return " ".join(PAGE.read_text(encoding="utf-8").split())


@pytest.fixture
def text(paper) -> str:
    return " ".join((paper / "heterofl.txt").read_text(encoding="utf-8").split())


@pytest.fixture
def printed(paper) -> Callable[..., float]:
    """Return a function from table, data, mix, metric and variant to the printed number."""
    cells = {}
    for cell in read_cells(paper):
        metric = "accuracy" if cell.job.split == "iid" else cell.metric.partition("-")[0]
        cells[cell.table, cell.job.data, cell.job.mix, metric, cell.job.variant] = cell.value
    return lambda table, data, mix, metric, *variant: cells[table, data, mix, metric, variant]


@pytest.fixture
def ablation(paper) -> list[tuple[dict[str, str], str]]:
    """Return every row of Tables 4 and 5 with each of its columns of results."""
    rows = [*rows_of(paper / "ablation_iid.csv"), *rows_of(paper / "ablation_noniid.csv")]
    return [(row, column) for row in rows for column in row if column.startswith(IMAGES)]


def of(ablation, row, column, **changed):
    """Return the number of the row that differs in what is named."""
    wanted = {key: row.get(key) for key in ("mode", "norm", "scaler", "masked_loss")} | changed
    return next(
        float(own[column])
        for own, name in ablation
        if name == column and all(own.get(key) == value for key, value in wanted.items())
    )


def test_one_number_of_the_text_is_not_that_of_the_table(text, printed):
    sentence = text.partition("The takeaway of Table 2")[2].partition("In particular")[0]
    numbers = [float(number) for number in re.findall(r"\((\d\d\.\d\d)%\)", sentence)]
    mixes = ("e", "c-e", "b-e", "a-e", "c", "b", "a")
    table = [printed("8", "cifar10", mix, "accuracy") for mix in mixes]
    assert [(ours, theirs) for ours, theirs in zip(numbers, table, strict=True) if ours != theirs] == [(91.99, 91.19)]


@pytest.mark.parametrize("data", IMAGES)
def test_the_same_jobs_are_printed_twice(said, printed, data):
    for metric, repeat, full in (
        ("accuracy", "IID, Table 4", "IID, Tables 7 and 8"),
        ("local", "local, Table 5", "local, Tables 7 and 8"),
        ("global", "global, Table 5", "global, Tables 7 and 8"),
    ):
        for table, line in (("4" if metric == "accuracy" else "5", repeat), ("7" if data == "mnist" else "8", full)):
            cells = said.partition(f"| {line} |")[2].split("|")[:6]
            shown = [float(cell) for cell in (cells[:3] if data == "mnist" else cells[3:])]
            assert shown == [printed(table, data, mix, metric) for mix in ("a", "e", "a-e")]


def test_baselines_have_two_flops_for_each_parameter(paper):
    for row in rows_of(paper / "tables.csv"):
        if row["method"] in BASELINES:
            assert float(row["flops_as_printed"]) / float(row["parameters"]) == pytest.approx(2, abs=0.06)
            assert float(row["parameters"]) * 4 / 2**20 == pytest.approx(float(row["space_mb"]), abs=0.02)


def test_the_vocabulary_is_that_of_the_printed_space(text, paper):
    assert "the total vocabulary size is 33278" in text
    space = {
        size: sum(own.numel() for own in PAPER["wikitext2"].build(vocabulary=size)(1.0).parameters()) * 4 / 2**20
        for size in (33_278, 33_279)
    }
    assert {size: f"{value:.2f}" for size, value in space.items()} == {33_278: "73.48", 33_279: "73.49"}
    assert "a 1.00 19.3 M 1.4B 73.49 3.37" in text


def test_tables_1_and_7_round_differently(text):
    for short, long in (("909 K", "909.5 K"), ("400 K", "400.5 K"), ("131 K", "130.5 K")):
        assert short in text
        assert long in text


@pytest.mark.parametrize(
    "quoted",
    [
        "(on CIFAR10) are comparable with those baselines",
        "All the figures are based on the Fix scenario",
        "the ratio of the number of weak learners is fixed to 50%",
        "Figure 6 to 8, we show the Fix complexity assignments for all balanced Non-IID data partition",
        "We show the results of Fix experiments in appendix in Fig. 5-8",
        "Figure 5: Interpolation experimental results for MNIST (non-IID, Local)",
        "Figure 9 to 11, we show the learning curve of experiments with",
        "with 50% Fix and Dynamic computation complexity assignments",
        "Dynamic non-IID results are also included in Table 1-3",
        "clients with computation complexity level smaller than p - 1",
        "Local Batch Size B 10 10 100",
        "IID Communication rounds non-IID 200 400 400 800 100 200",
        "[25, 50] [50, 100]",
        "25 50 75 100 125 150 175 200 Communication rounds (a) Fix Figure 11",
        "The sBN significantly outperforms",
        "moderately improves global per- formance",
        "moderately improve the results",
    ],
)
def test_what_the_page_quotes_is_in_the_paper(text, quoted):
    assert quoted in text


def test_sbn_is_best_in_half_of_the_comparisons_on_mnist(ablation):
    best = {name: [] for name in IMAGES}
    for row, column in ablation:
        if row["norm"] == "sbn":
            others = [
                float(own[column])
                for own, name in ablation
                if name == column and own["norm"] != "sbn" and same(own, row, "mode", "scaler", "masked_loss")
            ]
            best[column.partition("_")[0]].append(float(row[column]) > max(others))
    assert {name: (sum(own), len(own)) for name, own in best.items()} == {"mnist": (10, 20), "cifar10": (20, 20)}


def same(one, other, *keys):
    return all(one.get(key) == other.get(key) for key in keys)


def test_the_mask_costs_global_accuracy_on_mnist(ablation):
    gains = {name: [] for name in IMAGES}
    for row, column in ablation:
        if column.endswith("_global") and row["masked_loss"] == "no":
            gains[column.partition("_")[0]].append(of(ablation, row, column, masked_loss="yes") - float(row[column]))
    assert len(gains["cifar10"]) == 8
    assert min(gains["cifar10"]) > 0
    losses = sorted(-gain for gain in gains["mnist"] if gain < 0)
    assert (len(gains["mnist"]), len(losses)) == (8, 6)
    assert (losses[0], losses[-1]) == pytest.approx((0.8, 1.8))


def test_the_scaler_helps_in_most_comparisons(ablation):
    gains = [
        (round(of(ablation, row, column, scaler="yes") - float(row[column]), 1), row["norm"])
        for row, column in ablation
        if row["scaler"] == "no"
    ]
    assert (len(gains), sum(gain > 0 for gain, _ in gains), sum(gain == 0 for gain, _ in gains)) == (20, 15, 2)
    assert sorted(own for own in gains if own[0] < 0) == [(-3.2, "none"), (-3.0, "none"), (-0.3, "none")]
