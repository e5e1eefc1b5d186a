import pytest
import torch

from heterofl_flwr import training as learn
from heterofl_flwr.core import LEVELS
from simulations.bench import __main__ as bench
from simulations.bench import step
from simulations.bench.step import Case


@pytest.mark.parametrize(("model", "level"), [("cnn", "e"), ("cnn", "c"), ("preresnet18", "e")])
def test_all_sides_compute_the_same(model, level):
    step.check_equal(Case(model, LEVELS[level], steps=60, together=2, seed=3))


@pytest.mark.parametrize("engine", ["plain", "cohort"])
@pytest.mark.parametrize("spoil", [lambda value: value + 1e-3, lambda value: value * float("nan")])
def test_sides_that_differ_are_not_compared(monkeypatch, engine, spoil):
    right = learn.ENGINES[engine]

    def train_wrongly(works, options):
        results = right(works, options)
        with torch.no_grad():
            bias = works[-1].model.linear.bias
            bias.copy_(spoil(bias))
        return results

    monkeypatch.setitem(learn.ENGINES, engine, train_wrongly)
    with pytest.raises(
        RuntimeError, match=rf"engine {engine} and the plain loop differ by .* in linear.bias after 5 steps"
    ):
        step.check_equal(Case("cnn", LEVELS["e"], steps=60, together=2, seed=0))


@pytest.mark.parametrize("name", ["time_plain_loop", "time_engine", "time_cohort"])
def test_each_side_takes_time(name):
    assert getattr(step, name)(Case("cnn", LEVELS["e"], steps=2, together=2, seed=0)) > 0


@pytest.mark.parametrize(
    ("best", "passed"),
    [
        ({"a": 1.3, "b": 0.1, "e": 2.0}, True),
        ({"a": 1.29, "e": 5.0}, False),
        ({"a": 2.0, "e": 1.99}, False),
        ({"a": 2.0, "e": float("nan")}, False),
    ],
)
def test_verdict_compares_with_the_goals(capsys, best, passed):
    assert step.verdict(best) is passed
    assert capsys.readouterr().out.startswith("\nPASS" if passed else "\nFAIL")


@pytest.mark.slow
def test_command_ends_with_its_verdict(capsys):
    code = bench.main(["step", "--rounds", "1", "--steps", "2", "--cohort", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAIL" if code else "PASS")
    assert [own[0] for own in lines if own[:1] in LEVELS and own[1:2] == " "] == list(LEVELS)
