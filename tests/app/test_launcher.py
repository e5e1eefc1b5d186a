"""How a run ended, with a SuperLink that says what it is told to."""

import pytest
from heterofl_flwr.app.launch.launcher import _outcome

from heterofl_flwr.app.launch import launcher

STARTED = "Successfully started run 17\n"
RAISED = "Traceback (most recent call last):\n  File 'x', line 1, in f\n    g()\nKeyError: 'a'\n"


class Told:
    """A SuperLink that gives these answers, one after the other, the last one for ever."""

    def __init__(self, *answers: tuple[str, str], alive: bool = True) -> None:
        self.answers = list(answers)
        self.alive = alive

    def status(self, run_id: str) -> tuple[str, str]:
        assert run_id == "17"
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def end(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "PAUSE", 0.0)
    monkeypatch.setattr(launcher, "PATIENCE", 0.2)

    def end(log: str, *answers: tuple[str, str], alive: bool = True):
        path = tmp_path / "flower.log"
        path.write_text(log)
        return _outcome(Told(*answers, alive=alive), path)

    return end


def test_completed_is_completed(end):
    assert end(STARTED, ("finished:completed", "N/A")).good


def test_the_status_is_awaited(end):
    assert end(STARTED, ("running", "N/A"), ("running", "N/A"), ("finished:completed", "N/A")).good


def test_stopped_is_not_completed(end):
    ended = end(STARTED, ("finished:stopped", "N/A"))
    assert (ended.status, ended.good) == ("stopped", False)


def test_failed_names_what_was_raised(end):
    ended = end(STARTED + RAISED, ("finished:failed", "N/A"))
    assert (ended.status, ended.cause) == ("failed", "KeyError: 'a'")
    assert ended.trace[-1] == "    g()"
    assert ended.shortage is None


def test_failed_without_an_exception_says_what_flower_says(end):
    ended = end(STARTED, ("finished:failed", "No heartbeat received"))
    assert ended.cause == "No heartbeat received"
    assert ended.trace == ("Successfully started run 17",)


def test_failed_for_want_of_memory_is_known(end):
    ended = end(
        f"{STARTED}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB\n", ("finished:failed", "")
    )
    assert ended.shortage is not None
    assert "3 GiB" in str(ended.shortage)


def test_completed_with_a_round_without_results_is_failed(end):
    ended = end(STARTED + "aggregate_train: Received 0 results and 2 failures\n", ("finished:completed", "N/A"))
    assert ended.cause == "in a round all 2 clients that were asked failed"


def test_a_superlink_that_is_gone_is_told(end):
    assert "has ended before the run did" in end(STARTED, ("unknown", "no answer"), alive=False).cause


def test_a_status_that_never_ends_is_told(end):
    assert not end(STARTED, ("running", "N/A")).good


def test_refused_is_told_with_flowers_words(end):
    ended = end("╭─ Error ─╮\n│ Bad name │\n╰─────────╯\n", ("unknown", ""))
    assert (ended.cause, ended.trace) == ("Flower refused the run", ("Error", "Bad name"))
