"""Means over seeds beside printed numbers, and their tables."""

import pytest

from simulations.paper.printed import Job, read_cells
from simulations.paper.runs import gather
from simulations.paper.verdicts import describe_count, group_runs, results

IID_E = Job("mnist", "iid", "e")


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
