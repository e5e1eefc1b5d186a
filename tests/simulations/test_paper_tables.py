"""Means over seeds beside printed numbers, and their tables."""

import pytest

from simulations.paper.printed import Job, read_cells
from simulations.paper.runs import gather
from simulations.paper.verdicts import group_runs, results

IID_E = Job("mnist", "iid", "e")


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


def test_perplexities_are_judged_too_and_none_is_below_one(make_run, printed):
    groups = seeds_of(make_run, [7.0, 7.4, 30.0], "global-perplexity", data__name="wikitext2")
    (own,) = [own for own in results(read_cells(printed), groups) if own.group]
    assert own.verdict == "agrees"
    assert own.group.best.prediction[0] == 1.0
