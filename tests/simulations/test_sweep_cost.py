"""What a job has to compute, and how long it takes."""

from heterofl_flwr.app.sweep.cost import compute_cost, compute_macs, list_jobs, profile_at
from heterofl_flwr.core.formatting import duration
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.runs.folder import RunFolder
from tests.simulations.sweeping import job


def test_work_counted_by_hand():
    # 200 rounds of 10 clients with 600 images each, five epochs; half of the clients at each level.
    own = job("data=mnist", "mix=a-e")
    cost = compute_cost(own)
    assert cost.trained == {1.0: 200 * 10 * 600 * 5 / 2, 0.0625: 200 * 10 * 600 * 5 / 2}
    # 20 evaluations on all test images and, for the moments, on all training images, the last one of both levels; the
    # global model once more on the server, and there before the first round too.
    assert cost.evaluated == {1.0: 20 * 70_000 + 21 * 10_000, 0.0625: 70_000}
    macs = {rate: profile_at(own.settings, rate).macs for rate in (1.0, 0.0625)}
    assert compute_macs(own, cost) == sum(macs[rate] * (3 * cost.trained[rate] + cost.evaluated[rate]) for rate in macs)


def test_a_step_costs_what_its_replies_do():
    found = compute_cost(job("data=mnist", "mix=a-e", "asynchronous=buffered"))  # five replies a step
    assert found.trained == {1.0: 200 * 5 * 600 * 5 / 2, 0.0625: 200 * 5 * 600 * 5 / 2}


def test_time_follows_from_rounds_that_were_run(tmp_path):
    begun, new, other = (
        job("data=mnist", f"mix={mix}", f"data.split={split}", path=tmp_path / str(number))
        for number, (mix, split) in enumerate([("e", "iid"), ("e", "non-iid-2"), ("d", "iid")])
    )
    folder = RunFolder(begun.path)
    folder.start({**begun.config})
    for number in range(1, 51):
        folder.append(RoundRecord(server_round=number, seconds=2.0, learning_rate=0.01, rates={}))
    rows = [line.split("  ") for line in list_jobs([begun, new, other]).splitlines()]
    times = {row[0]: [cell.strip() for cell in row if cell.strip()][3] for row in rows if row[0] in ("0", "1", "2")}
    macs = [compute_macs(own, compute_cost(own)) for own in (begun, new, other)]
    seconds = 100 / (macs[0] - compute_macs(begun, compute_cost(begun, 50)))
    left = compute_macs(begun, compute_cost(begun, 50)) * seconds
    assert times == {"0": duration(left), "1": duration(macs[1] * seconds), "2": duration(macs[2] * seconds)}
    assert list_jobs([new]).endswith("1 jobs, 0 of them done; the time of the others is known after a round")
