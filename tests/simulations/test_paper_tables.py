"""Means over seeds beside printed numbers, and their tables."""

import math

import pytest
from scipy.stats import ttest_ind

from simulations.paper.printed import Job, read_cells
from simulations.paper.runs import gather
from simulations.paper.statistics import (
    PERCENT,
    Summary,
    describe_count,
    group_runs,
    half_width_of_difference,
    results,
    summarise,
)
from simulations.paper.tables import Table, escape, to_latex, to_markdown

IID_E = Job("mnist", "iid", "e")


def test_one_value_has_no_spread():
    assert summarise([3.0]) == Summary(1, 3.0)
    assert summarise([3.0]).interval is None


def test_two_values_have_a_deviation_and_no_interval():
    two = summarise([1.0, 3.0])
    assert (two.number, two.mean, two.half_width) == (2, 2.0, None)
    assert two.deviation == pytest.approx(math.sqrt(2))


def test_three_values_have_an_interval():
    three = summarise([1.0, 2.0, 3.0])
    # Deviation 1; the quantile of t with 2 degrees of freedom is 4.3027.
    assert three.deviation == pytest.approx(1.0)
    assert three.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert three.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), rel=1e-6)


def test_runs_are_put_together_over_seeds(make_run):
    for seed, (early, late) in enumerate([(0.98, 0.97), (0.99, 0.98), (0.97, 0.96)]):
        evaluated = {100: {"global-accuracy": early}, 200: {"global-accuracy": late}}
        folder = make_run(str(seed), evaluated, seed=seed)
    group = group_runs(gather([folder.path.parent]).counted)[IID_E, "accuracy"]
    assert [run.seed for run, _ in group.runs] == [0, 1, 2]
    assert (group.best.mean, group.final.mean) == pytest.approx((98.0, 97.0))
    assert group.best.deviation == pytest.approx(1.0)


def seeds_of(make_run, values, metric="global-accuracy", **settings):
    """Make a run for each value, and return what is printed of their job with them."""
    for seed, value in enumerate(values):
        folder = make_run(f"seed-{seed}", {200: {metric: value}}, seed=seed, **settings)
    return group_runs(gather([folder.path.parent]).counted)


@pytest.mark.parametrize(
    ("mean", "verdict"),
    # The deviation is 0.1 and t is 4.302653, so one more run is within 0.4968 of the mean; print rounds by 0.005.
    [(98.66, "agrees"), (99.161, "agrees"), (99.163, "differs"), (98.159, "agrees"), (98.157, "differs")],
)
def test_a_printed_number_agrees_if_one_more_run_may_well_give_it(make_run, printed, mean, verdict):
    groups = seeds_of(make_run, [(mean + step) / 100 for step in (-0.1, 0.0, 0.1)])
    by_cell = {(own.cell.table, own.cell.metric, own.cell.job): own for own in results(read_cells(printed), groups)}
    own = by_cell["7", "accuracy", IID_E]
    assert own.verdict == verdict
    assert own.difference == pytest.approx(mean - 98.66)


def test_two_seeds_are_too_few_to_tell(make_run, printed):
    found = results(read_cells(printed), seeds_of(make_run, [0.5, 0.6]))
    assert {own.cell.table: own.verdict for own in found if own.group} == {"7": "too few seeds", "4": "too few seeds"}


def test_perplexities_are_judged_too_and_none_is_below_one(make_run, printed):
    groups = seeds_of(make_run, [7.0, 7.4, 30.0], "global-perplexity", data__name="wikitext2")
    (own,) = [own for own in results(read_cells(printed), groups) if own.group]
    assert own.verdict == "agrees"
    assert own.group.best.prediction[0] == 1.0


def test_no_interval_of_percentages_leaves_them():
    summary = summarise([99.0, 99.5, 99.9], PERCENT)
    assert summary.interval[1] == summary.prediction[1] == 100.0
    assert summarise([0.0, 1.0, 3.0], PERCENT).interval[0] == 0.0


def test_the_prediction_is_wider_than_the_interval_of_the_mean():
    three = summarise([1.0, 2.0, 3.0])
    half_width = 4.302653 * math.sqrt(1 + 1 / 3)
    assert three.prediction == pytest.approx((2 - half_width, 2 + half_width), rel=1e-6)


def test_the_interval_of_a_difference_is_welchs():
    one, two = [98.0, 98.2, 98.7, 98.1], [97.0, 97.9, 98.2]
    low, high = ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    assert half_width_of_difference(summarise(one), summarise(two)) == pytest.approx((high - low) / 2)
    assert half_width_of_difference(summarise(one), summarise(two[:2])) is None
    assert half_width_of_difference(summarise([1.0] * 3), summarise([2.0] * 3)) == 0.0


def test_cells_are_counted(make_run, printed):
    for seed, accuracy in enumerate([0.986, 0.987, 0.988]):
        make_run(f"iid-{seed}", {200: {"global-accuracy": accuracy}}, seed=seed)
    make_run("text", {200: {"global-perplexity": 7.4}}, data__name="wikitext2")
    split = {"data__split": "non-iid-2"}
    folder = make_run("noniid", {400: {"global-accuracy": 0.92, "local-accuracy": 0.5}}, **split)
    make_run("unfinished", mix="a1-e1", rounds=100)
    total = describe_count(results(read_cells(printed), group_runs(gather([folder.path.parent]).counted)))
    # IID: Tables 7 and 4, which agree; the others have one seed.
    assert total == "5 of 21 printed numbers have a run: 2 agree, 0 differ, 3 have too few seeds to tell"


TABLE = Table("tab:x", "Table 7: a_b", ("model", "seeds", "best"), (("a-e", "0, 1", "98.66 ± 0.03"), ("[x]", "&", "%")))


def test_markdown_has_the_numbers_on_the_right():
    assert to_markdown(TABLE) == (
        "## Table 7: a_b\n\n| model | seeds | best |\n| --- | ---: | ---: |\n"
        "| a-e | 0, 1 | 98.66 ± 0.03 |\n| [x] | & | % |\n"
    )


def test_markdown_keeps_bars_within_a_cell():
    assert r"a\|b" in to_markdown(Table("tab:x", "x", ("model",), (("a|b",),)))


def test_a_note_follows_the_rows():
    assert to_markdown(Table("tab:x", "x", ("model",), (("a",),), "A note.")).endswith("| a |\n\nA note.\n")


def test_latex_has_the_same_table():
    assert to_latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Table 7: a\_b.}",
        r"\label{tab:x}",
        r"\begin{tabular}{lrr}",
        r"\hline",
        r"{}model & seeds & best \\",
        r"\hline",
        r"{}a-e & 0, 1 & 98.66 $\pm$ 0.03 \\",
        r"{}[x] & \& & \% \\",
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 %", r"50 \%"),
        ("num_rounds & more", r"num\_rounds \& more"),
        (r"a\b", r"a\textbackslash{}b"),
        ("{#1} ~ ^ $", r"\{\#1\} \textasciitilde{} \textasciicircum{} \$"),
    ],
)
def test_latex_prints_what_the_text_says(text, expected):
    assert escape(text) == expected
