import math

import pytest

from simulations.published.cells import read_cells
from simulations.published.gathering import gather
from simulations.published.jobs import Job
from simulations.published.statistics import Summary, summarise
from simulations.published.tally import count, group_runs, results

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


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.9866, "yes"), (0.9873, "yes"), (0.9859, "yes"), (0.98735, "no"), (0.9, "no")]
)
def test_a_cell_is_reproduced_within_the_papers_own_repeats(make_run, printed, accuracy, verdict):
    folder = make_run(evaluated={200: {"global-accuracy": accuracy}})
    found = results(read_cells(printed), group_runs(gather([folder.path]).counted))
    by_cell = {(own.cell.table, own.cell.metric, own.cell.job): own for own in found}
    own = by_cell["7", "accuracy", IID_E]
    assert own.verdict == verdict
    assert own.difference == pytest.approx(100 * accuracy - 98.66)


def test_one_run_serves_every_cell_of_its_job(make_run, printed):
    folder = make_run(evaluated={200: {"global-accuracy": 0.9866}})
    found = results(read_cells(printed), group_runs(gather([folder.path]).counted))
    assert {own.cell.table: own.verdict for own in found if own.group} == {"7": "yes", "4": "yes"}


def test_nothing_says_how_near_is_near_for_perplexity(make_run, printed):
    folder = make_run(evaluated={200: {"global-perplexity": 7.4}}, data__name="wikitext2")
    found = results(read_cells(printed), group_runs(gather([folder.path]).counted))
    assert [own.verdict for own in found if own.group] == ["not judged"]


def test_cells_are_counted(make_run, printed):
    make_run("iid", {200: {"global-accuracy": 0.9866}})
    make_run("text", {200: {"global-perplexity": 7.4}}, data__name="wikitext2")
    split = {"data__split": "non-iid-2"}
    folder = make_run("noniid", {400: {"global-accuracy": 0.92, "local-accuracy": 0.5}}, **split)
    make_run("unfinished", mix="a1-e1", rounds=100)
    total = count(results(read_cells(printed), group_runs(gather([folder.path.parent]).counted)))
    # IID: Tables 7 and 4; global: within 2.3 of 92.84; local: far from 99.07; perplexity: not judged.
    assert str(total) == ("5 of 24 printed numbers have a run, 3 within the tolerance, 1 outside, 1 not judged")


def test_no_run_is_one_of_a_baseline(make_run, printed):
    folder = make_run()
    found = results(read_cells(printed), group_runs(gather([folder.path]).counted))
    baselines = [own for own in found if own.cell.group == "baselines"]
    assert len(baselines) == 3
    assert not any(own.group for own in baselines)
