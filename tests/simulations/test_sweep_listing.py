"""How long the jobs of a sweep take."""

from heterofl_flwr.app.sweep.listing import list_jobs
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.runs.folder import RunFolder
from tests.simulations.sweeping import job


def test_time_follows_from_rounds_that_were_run(tmp_path):
    jobs = [
        job("data=mnist", "num-rounds=200", f"mix={mix}", path=tmp_path / str(number))
        for number, mix in enumerate(("e", "d", "c"))
    ]
    for own, done, seconds in zip(jobs[:2], (50, 10), (2.0, 14.0), strict=True):
        folder = RunFolder(own.path)
        folder.start({**own.config})
        for number in range(1, done + 1):
            folder.append(RoundRecord(server_round=number, seconds=seconds, learning_rate=0.01, rates={}))
    rows = [line.split("  ") for line in list_jobs(jobs).splitlines()]
    times = {row[0]: [cell.strip() for cell in row if cell.strip()][1:3] for row in rows if row[0] in ("0", "1", "2")}
    # Its own rounds say it; of the last, which has none, those of the others: 240 seconds for 60 rounds.
    assert times["0"] == ["5 min 0 s", "round 50 of 200"]
    assert times["1"] == ["44 min 20 s", "round 10 of 200"]
    assert times["2"] == ["13 min 20 s", "new"]
    assert list_jobs([jobs[2]]).endswith("1 jobs, 0 of them done; the time of the others is known after a round")
