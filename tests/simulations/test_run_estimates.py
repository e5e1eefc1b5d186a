"""What a job has to compute, and how long it takes."""

from dataclasses import replace

import pytest

from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.data import load_dataset
from heterofl_flwr.data.load import HUB_NAMES
from simulations.sweep import cost as speed
from simulations.sweep.cost import PIECE, SIZES, Clock, compute_cost, facts_of, model_at, ratio, seconds_of_jobs
from simulations.sweep.job import Job
from simulations.sweep.sweeper import Listed, Progress, duration, listing
from tests.simulations.sweeping import SHRUNKEN, planned


def job(*overrides: str) -> Job:
    (own,) = planned(*overrides).values()
    return own.job


def test_work_counted_by_hand():
    # 200 rounds of 10 clients with 600 images each, five epochs; half of the clients at each level.
    cost = compute_cost(job("data=mnist", "mix=a-e"))
    assert cost.trained == {1.0: 200 * 10 * 600 * 5 / 2, 0.0625: 200 * 10 * 600 * 5 / 2}
    # 20 evaluations on all test images and, for the moments, on all training images, the last one of both levels; the
    # global model once more on the server, and there before the first round too.
    assert cost.evaluated == {1.0: 20 * 70_000 + 21 * 10_000, 0.0625: 70_000}
    assert cost.parameters == (1_556_874 + 6_594) / 2
    assert cost.at_once == 10
    macs = {rate: cost.macs for rate, cost in cost.profiles.items()}
    assert cost.macs == sum(macs[rate] * (3 * cost.trained[rate] + cost.evaluated[rate]) for rate in macs)


def test_work_without_batch_norm_levels_server_or_evaluation():
    found = compute_cost(
        job("data=mnist", "mix=a-e", "model.norm=gn", "evaluate.levels=false", "evaluate.central=false")
    )
    assert found.evaluated == {1.0: 20 * 10_000, 0.0625: 0}
    each = compute_cost(job("data=mnist", "mix=a-e", "model.norm=gn", "evaluate.levels=true", "evaluate.central=false"))
    assert each.evaluated == {1.0: 20 * 10_000, 0.0625: 20 * 10_000}
    assert compute_cost(job("data=mnist", "mix=a-e", "evaluate.every=0")).evaluated == {}
    assert compute_cost(job("data=mnist", "mix=a", "evaluate.every=150")).evaluated == {1.0: 2 * 70_000 + 3 * 10_000}


def test_what_is_left_of_a_job_that_was_begun():
    begun = job("data=mnist", "mix=a-e")
    left = compute_cost(begun, 195)
    assert left.trained == {1.0: 5 * 10 * 600 * 5 / 2, 0.0625: 5 * 10 * 600 * 5 / 2}
    assert left.evaluated == {1.0: 70_000 + 10_000, 0.0625: 70_000}  # only the last evaluation, though that is of both
    assert compute_cost(begun, 9).evaluated == {1.0: 20 * 70_000 + 20 * 10_000, 0.0625: 70_000}
    assert compute_cost(begun, 10).evaluated == {1.0: 19 * 70_000 + 19 * 10_000, 0.0625: 70_000}
    odd = job("data=mnist", "mix=a", "evaluate.every=150")  # in rounds 150 and 200
    assert [compute_cost(odd, done).evaluated[1.0] for done in (149, 150, 199)] == [2 * 80_000, 80_000, 80_000]


def test_pieces_of_text():
    cost = compute_cost(job("data=wikitext2", "mix=a"))
    assert cost.trained == {1.0: 200 * 10 * 327}  # one row each, once
    assert cost.parameters == 19_263_999
    assert cost.evaluated == {1.0: 20 * 10 * 384 + 21 * 10 * 384}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_data(shared, name):
    if not (shared / "data" / HUB_NAMES[name]).is_dir():
        pytest.skip(f"needs the data set in shared/data/{HUB_NAMES[name]}")
    data = load_dataset(name, shared / "data")
    pieces = 1 if data.train.reading is None else [-(-own.inputs.shape[1] // PIECE) for own in (data.train, data.test)]
    train, test = (pieces, pieces) if isinstance(pieces, int) else pieces
    assert (len(data.train) * train, len(data.test) * test) == SIZES[name]


def test_other_data_are_looked_at():
    facts = facts_of("digits", "")
    assert (facts.train + facts.test, facts.example.shape, facts.options["classes"]) == (1797, (1, 1, 8, 8), 10)


def test_what_is_known_of_a_model_depends_on_nothing_else():
    one = job("data=mnist", "mix=a-e", "seed=3", "train.lr=0.5").settings
    other = job("data=mnist", "mix=b-e", "split=non-iid-2", "assignment=fix").settings
    assert model_at(one, 0.0625) == model_at(other, 0.0625)
    assert model_at(one, 0.3) != model_at(one, 0.25)
    assert model_at(one, 1.0) != model_at(job("data=mnist", "model.norm=gn").settings, 1.0)


def test_each_model_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(speed, "_measure", lambda *key: (measured.append(key), (2.0, 1.0))[1])
    monkeypatch.setattr(speed.gpus, "cores", lambda: 4)
    clock = Clock()
    first, second = job("data=mnist", "mix=a-e"), job("data=mnist", "mix=a-e", "engine.parallel=1")
    cost = compute_cost(first)
    cpu = 2 * sum(cost.trained.values()) + sum(cost.evaluated.values())
    assert clock.seconds(first, cost) == cpu / 4
    assert clock.seconds(second, cost) == cpu
    assert len(measured) == 2


def test_jobs_that_have_ended_stretch_those_with_the_same_data(monkeypatch):
    monkeypatch.setattr(speed, "_measure", lambda settings, batch, device: (1.0, 0.0))
    jobs = {name: own.job for name, own in planned("data=mnist,digits", "mix=a", "seed=0,1").items()}
    plain = seconds_of_jobs(jobs, {}, {})
    first, second, third, fourth = jobs
    found = seconds_of_jobs(jobs, {first: 3 * plain[first]}, {second: 100})
    assert found[first] == 3 * plain[first]
    assert found[second] == pytest.approx(3 * plain[second] / 2)  # half of its rounds are done
    assert (found[third], found[fourth]) == (plain[third], plain[fourth])


def test_what_cannot_be_known_is_left_out():
    lost = job("data.name=nowhere:nothing")
    assert seconds_of_jobs({"lost": lost}, {}, {}) == {}
    assert "?" in listing([Listed(lost, "new", None)])


def test_small_models_of_each_kind_can_be_measured():
    clock = Clock()
    images = job(*SHRUNKEN, "mix=a")
    assert 0 < clock.seconds(images, compute_cost(images)) < 60


@pytest.mark.slow
def test_a_text_model_can_be_measured():
    text = job("data=wikitext2", "mix=e")
    assert Clock().seconds(text, compute_cost(text)) > 0


def test_ratio_of_nothing_is_one():
    assert ratio([]) == 1
    assert ratio([(1.0, 3.0), (1.0, 1.0)]) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "0:01:00"), (3723, "1:02:03"), (3 * 86400 + 5, "3 days, 0:00:05")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_progress_counts_jobs_and_learns_from_their_ends(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("simulations.sweep.sweeper.time.monotonic", lambda: now[0])
    progress = Progress(["one", "two", "three"], {"one": 10.0, "two": 10.0, "three": 20.0})
    assert progress.begin("one") == "job 1 of 3: one, about 40 s left"
    now[0] = 115.0
    progress.end("one", good=True)
    assert progress.begin("two") == "job 2 of 3: two, 15 s so far, about 45 s left"
    now[0] = 116.0
    progress.end("two", good=False)
    assert progress.begin("three") == "job 3 of 3: three, 16 s so far, about 30 s left"


def test_progress_without_estimates_says_none():
    assert Progress(["one"], {}).begin("one") == "job 1 of 1: one"


def test_a_listing_has_a_row_for_each_job_and_a_sum():
    jobs = [own.job for own in planned("data=mnist", "mix=a,e", "model.norm=gn").values()]
    text = listing([Listed(jobs[0], "done", 90.0), Listed(jobs[1], "new", 30.0)])
    lines = text.splitlines()
    assert lines[0].split()[:5] == ["job", "parameters", "MACs", "time", "state"]
    assert lines[2].split() == [
        jobs[0].name,
        "1.6",
        "M",
        f"{compute_cost(jobs[0]).macs:.2e}",
        "0:01:30",
        "done",
        "model.norm=gn",
    ]
    assert lines[-1] == "2 jobs, 1 of them done; the others take about 30 s"
    unknown = listing([Listed(replace(jobs[0]), "new", None), Listed(jobs[1], "new", 30.0)])
    assert unknown.splitlines()[-1] == "2 jobs, 0 of them done; the others take about 30 s, without 1 unknown"


def test_every_level_costs_less_than_the_one_before():
    macs = [compute_cost(job("data=cifar10", f"mix={level}")).macs for level in LEVELS]
    assert macs == sorted(macs, reverse=True)
