"""The paper's jobs, printed numbers, claims and figures, and what runs say of them."""

import json

import pytest

from heterofl_flwr.settings.validate import from_flat
from simulations.results.claims import CLAIMS, claims_page
from simulations.results.configurations import configurations, published
from simulations.results.paper import Job, by_job, departures, differences, job_of, read_cells
from simulations.results.runs import read_run, read_runs
from simulations.results.tables import count_verdicts


def test_a_job_is_read_from_settings():
    settings = from_flat({"data.name": "mnist", "data.split": "non-iid-2", "mix": "a1-e1"})
    assert job_of(settings) == Job("mnist", "noniid", "a-e", "fix", "sbn", scaler=True, masked=True)
    settings = from_flat({"data.name": "uoft-cs/cifar10", "mix": "a1-e9", "assignment": "fix", "model.norm": "gn"})
    assert job_of(settings) == Job("cifar10", "iid", "a1-e9", "fix", "gn", scaler=True, masked=True)
    settings = from_flat({"data.name": "wikitext2", "model.scaler": False, "train.mask-fill": "none"})
    assert job_of(settings).variant == ("no Scaler", "no mask")


@pytest.mark.parametrize(
    ("changed", "found"),
    [({}, ()), ({"data.split": "non-iid-2"}, ()), ({"train.lr": 0.05}, ("train.lr 0.05 instead of 0.01",))],
)
def test_only_other_settings_are_not_as_published(changed, found):
    assert differences(from_flat({"data.name": "mnist", **changed})) == found


def test_a_run_tells_where_it_is_not_as_published(make_run):
    found = [make_run("few", clients=2), make_run("short", num_rounds=3), make_run("dealt")]
    found[2].note(clients=95)
    assert [departures(read_run(folder.path)) for folder in found] == [
        ("clients a round 2 instead of 10",),
        ("num-rounds 3 instead of 200",),
        ("clients 95 instead of 100",),
    ]


def reached_in(folder):
    """Return what the published runs below a folder reached, by job and metric."""
    return published(configurations(read_runs([folder])[0]))


@pytest.mark.parametrize(
    ("mean", "verdict"),
    # The deviation is 0.1 and t is 4.302653, so one more run is within 0.4968 of the mean; print rounds by 0.005.
    [(98.66, "agrees"), (99.161, "agrees"), (99.163, "differs"), (98.159, "agrees"), (98.157, "differs")],
)
def test_a_number_agrees_if_one_more_run_may_well_give_it(make_run, tmp_path, printed, mean, verdict):
    for seed, step in enumerate((-0.1, 0.0, 0.1)):
        make_run(str(seed), {200: {"global-accuracy": (mean + step) / 100}}, seed=seed)
    key = Job("mnist", "iid", "e"), "global-accuracy"
    cell, _ = by_job(read_cells(printed))[key]
    assert cell.table == "7"
    assert cell.verdict(reached_in(tmp_path / "runs")[key].best) == verdict


@pytest.fixture
def page(make_run, tmp_path, printed):
    """Return a function that makes a run for each value of each job, and returns the rows of each claim."""

    def write(jobs):
        for number, (settings, values) in enumerate(jobs):
            for seed, value in enumerate(values):
                evaluated = {100: {"global-accuracy": 0.995}, 200: {"global-accuracy": value}}
                make_run(f"{number}-{seed}", evaluated, seed=seed, num_rounds=200, **settings)
        text = claims_page(reached_in(tmp_path / "runs"), by_job(read_cells(printed)), "the command")
        sections = {part.partition("\n")[0]: part.splitlines() for part in text.split("## ")}
        found = {title: [row for row in sections[title] if row[:7] == "| mnist"] for title in CLAIMS}
        return found | {"Summary": sections["Summary"]}

    return write


HIGH, LOW = [0.990, 0.991, 0.992], [0.985, 0.987, 0.986]  # less than a point lower


@pytest.mark.parametrize(
    ("dynamic", "fix", "verdict"),
    [
        (HIGH, LOW, "holds"),
        (LOW, HIGH, "does not hold"),
        (HIGH, HIGH, "no difference seen"),
        (HIGH, LOW[:2], "too few seeds"),
    ],
)
def test_a_claim_holds_only_where_the_whole_interval_does(page, dynamic, fix, verdict):
    found = page([({"mix": "b1-e1"}, dynamic), ({"mix": "b1-e1", "assignment": "fix"}, fix)])
    (row,) = found["Dynamic is better than Fix"]
    assert row.split(" | ")[1] == "b-e (dynamic) against b-e (fix)"
    assert row.split(" | ")[4] == verdict


def add_level(folder, level, value):
    """Give the last record of a run the accuracy of a level's model on all clients' test data."""
    history = folder.path / "history.jsonl"
    *earlier, last = history.read_text(encoding="utf-8").splitlines()
    last = json.dumps({**json.loads(last), "evaluate_by_level": {level: {"global-accuracy": value}}})
    history.write_text("\n".join([*earlier, last, ""]), encoding="utf-8")


def rows_of_levels(folder):
    """Return the summary line of a claim on levels, and the cells of its comparisons."""
    title = "Each level gains by taking part, compared with all clients at that level"
    lines = claims_page(reached_in(folder), {}, "").splitlines()
    (summary,) = (line for line in lines if line.startswith(f"| {title}"))
    return summary, [line.split(" | ") for line in lines if "accuracy of e" in line]


def test_a_level_is_compared_by_best_rounds_only_if_it_was_evaluated_in_them(make_run, tmp_path):
    for seed, value in enumerate(HIGH):
        evaluated = {100: {"global-accuracy": 0.995}, 200: {"global-accuracy": value}}
        make_run(f"alone-{seed}", evaluated, seed=seed)
        add_level(make_run(f"mix-{seed}", evaluated, seed=seed, mix="b1-e1"), "e", LOW[0])
    summary, (row,) = rows_of_levels(tmp_path / "runs")
    assert summary.endswith("| does not hold: 1 | not run |")
    assert row[3:] == ["-0.60 [-0.85, -0.35]", "does not hold", "0.33", "-", "-", "- |"]


def test_a_level_of_a_non_iid_mix_is_compared_with_the_level_alone_on_the_same_test_data(make_run, tmp_path):
    split = {"data.split": "non-iid-2"}
    for seed, value in enumerate(HIGH):
        evaluated = {400: {"global-accuracy": value}}  # on the test set
        add_level(make_run(f"alone-{seed}", evaluated, seed=seed, **split), "e", LOW[seed])
        add_level(make_run(f"mix-{seed}", evaluated, seed=seed, mix="b1-e1", **split), "e", LOW[seed])
        add_level(make_run(f"idle-{seed}", evaluated, seed=seed, mix="e1-x1", **split), "e", LOW[seed])
    _, (row,) = rows_of_levels(tmp_path / "runs")
    assert row[1] == "b-e (dynamic) against e"
    assert row[3].startswith("+0.00 ")


def test_an_interval_is_noted_as_wide_only_where_a_number_agrees(make_run, tmp_path, printed):
    for seed, value in enumerate((0.2, 0.3, 0.4)):
        make_run(str(seed), {200: {"global-accuracy": value}}, seed=seed)
    first, *_ = count_verdicts(read_cells(printed), reached_in(tmp_path / "runs"))
    assert first.endswith("have a run: 0 agree, 1 differ, 0 have too few seeds to tell")
