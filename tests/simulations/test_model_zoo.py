"""The zoo: what it checks, that it notices each fault, and its command."""

import json

import pytest
import torch
from torch import nn

from simulations.model_zoo import __main__ as zoo, models
from simulations.model_zoo.check import MOST_DIFFERENT, BrokenPropertyError, check
from simulations.model_zoo.sources import Case, NotBuiltError, Source
from tests.elastic_models.families import Then

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _around(function=lambda self, x: x, **layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 20), Then(function, **layers), nn.Linear(20, 2)).double()


def test_a_plain_model_works():
    found = check(_around(), X, (1.0, 0.5, 0.25, 0.3))
    assert found.parameters == {1.0: 122, 0.5: 62, 0.25: 32, 0.3: 38}
    assert found.difference < 1e-12
    assert (found.unproven, found.large) == ("", "")


@pytest.mark.parametrize(
    "counts",
    [
        lambda self, x: nn.functional.rms_norm(x, (x.shape[-1],)),
        lambda self, x: x + x.softmax(-1) + x.log_softmax(-1),
        lambda self, x: x + torch.cat([x, torch.zeros(1, x.shape[1]).to(x)]).exp().mean(-1, keepdim=True)[:-1],
    ],
)
def test_what_counts_channels_counts_those_of_the_slice(counts):
    assert check(_around(counts), X).difference < 1e-10


def test_an_operator_without_a_rule_leaves_the_difference_open():
    model = _around(lambda self, x: x + x.median(0).values)
    assert "aten.median" in check(model, X).unproven


def test_branches_that_begin_at_zero_are_judged(monkeypatch):
    model = _around()
    nn.init.zeros_(model[-1].weight)
    found = check(model, X)
    assert found.difference < 1e-10  # on some processors 0
    assert found.unproven == ""
    monkeypatch.setitem(MOST_DIFFERENT, torch.float64, -1.0)
    with pytest.raises(BrokenPropertyError, match="is off by"):
        check(model, X)


def test_outputs_that_inputs_do_not_reach_prove_nothing():
    assert "what inputs make fades" in check(_around(lambda self, x: x * 1e-30 + 1), X).unproven


def _make(name):
    if name == "huge":
        raise NotBuiltError("it has 10 parameters")
    function = {
        "plain": lambda self, x: x,
        "odd": lambda self, x: x * float(x.sum()),
        "thin": lambda self, x: x.flip(0),
    }
    return Case(name, _around(function[name]).float(), X.float())


@pytest.fixture
def small(monkeypatch):
    """Let a package of four models be all that there is."""
    source = Source(lambda: ["huge", "odd", "plain", "thin"], lambda name: name[:2], _make, "four of them")
    monkeypatch.setattr(models, "SOURCES", {"torch": source})
    monkeypatch.setattr(zoo, "SOURCES", {"torch": source})


def test_the_command_goes_on_where_it_was_and_writes_the_page(tmp_path, capsys, monkeypatch, small):
    findings = tmp_path / "new" / "findings.jsonl"
    given = ["--findings", str(findings), "--out", str(tmp_path)]
    assert zoo.main(given) == 0
    said = capsys.readouterr().out
    assert "2 exact, 0 unproven, 1 refused, 0 wrong, 1 not built" in said
    assert [json.loads(one)["name"] for one in findings.read_text().splitlines()] == ["huge", "odd", "plain", "thin"]
    page = (tmp_path / "models.md").read_text()
    assert [name for name in ("huge", "odd", "plain", "thin") if f"`{name}`" in page] == ["huge", "odd"]
    models_listed = [line.split(",")[1:4:2] for line in (tmp_path / "models.csv").read_text().splitlines()[1:]]
    assert models_listed == [["huge", "not built"], ["odd", "refused"], ["plain", "exact"], ["thin", "exact"]]
    monkeypatch.setattr(models, "find", lambda *_: pytest.fail("made again"))
    assert zoo.main(given) == 0
    assert (tmp_path / "models.md").read_text() == page
    assert zoo.main(["torch:odd", "--findings", str(findings)]) == 1
