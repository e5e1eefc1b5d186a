import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heterofl_flwr.report import TensorBoard


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder.events), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_every_number_of_every_round_is_there(folder, fake):
    fake.run([TensorBoard(folder)], 1, 4)
    events = read(folder)
    values = [(event.step, event.value) for event in events.Scalars("evaluate/global-accuracy")]
    expected = [(number, fake.progress(number, 4).record.evaluate["global-accuracy"]) for number in (2, 4)]
    assert values == [(number, pytest.approx(value)) for number, value in expected]
    assert [event.step for event in events.Scalars("round/seconds")] == [1, 2, 3, 4]
    assert "train/a/loss" in events.Tags()["scalars"]


def test_a_resumed_run_has_each_round_once(folder, fake):
    fake.run([TensorBoard(folder)], 1, 9, dies_after=5)
    fake.run([TensorBoard(folder)], 4, 6)
    assert [event.step for event in read(folder).Scalars("round/seconds")] == [1, 2, 3, 4, 5, 6]


def test_it_may_be_told_of_an_end_without_a_start(folder):
    TensorBoard(folder).on_end({})
    assert not folder.events.exists()
