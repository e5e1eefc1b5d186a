"""The zoo: what it checks, that it notices each fault, and its command."""

import json

import pytest
import torch
from torch import nn

from simulations.model_zoo import __main__ as zoo
from simulations.model_zoo import check as checking
from simulations.model_zoo import models as torchvisions
from simulations.model_zoo.__main__ import page
from simulations.model_zoo.check import BrokenPropertyError, check
from simulations.model_zoo.models import Finding
from tests.elastic_models.families import Then

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_model_of_torchvision_works():
    model, inputs = torchvisions.make("mobilenet_v3_small", 0)
    found = check(model, inputs, torchvisions.ENDS)
    assert found.parameters.keys() == {1.0, 0.5, 0.25, 0.3}
    assert found.explained == []
    assert found.difference < 1e-9


def test_all_parameters_are_drawn_and_those_who_draw_until_it_fits_come_to_an_end():
    model, _ = torchvisions.make("swin_t", 0)  # by torch's truncated normal
    assert all(parameter.std() > 0.01 for parameter in model.parameters() if parameter.numel() > 1)


def _around(function=lambda self, x: x, **layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 20), Then(function, **layers), nn.Linear(20, 2)).double()


def test_a_plain_model_works():
    found = check(_around(), X, (3, 2))
    assert found.parameters == {1.0: 122, 0.5: 62, 0.25: 32, 0.3: 38}
    assert found.off == 0


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (lambda self, x: x * x.shape[1], "the output differs from the full model's with zeros by"),
        (lambda self, x: x[:, torch.arange(20)], r"at rate 0.5 there are \+96.8% parameters .*: 0.weight has 60"),
        (lambda self, x: nn.functional.dropout(x, 0.5, True), "the output is not the model's own at rate 1"),
        (lambda self, x: x.detach(), "0.weight has no gradient, or one that is not finite, at rate 1"),
        (lambda self, x: x * torch.inf if self.training else x, "has no gradient, or one that is not finite"),
    ],
)
def test_faults_of_models_are_noticed(function, fault):
    with pytest.raises(BrokenPropertyError, match=fault):
        check(_around(function), X, (3, 2))


class _Altered:
    """A build that does something wrong to each smaller model, or to the model given."""

    def __init__(self, build, alter, model):
        self._build, self._alter = build, alter
        alter(model, 0)

    def __getattr__(self, name):
        return getattr(self._build, name)

    def __call__(self, rate):
        model = self._build(rate)
        with torch.no_grad():
            self._alter(model, rate)
        return model


@pytest.mark.parametrize(
    ("first", "last", "change", "fault"),
    [
        (1, 1, lambda layer: layer.weight.mul_(2), "0.weight is not the model's own at rate 1"),
        (0.1, 0.9, lambda layer: layer.weight.mul_(2), "0.weight is not the plan's slice"),
        (0, 0, lambda layer: layer.bias.data.add_(1), "the trace changed the model given"),
        (0, 0, lambda layer: layer.register_forward_hook(lambda *_: None), "the trace changed the model given"),
    ],
    ids=["whole", "slice", "given", "hook"],
)
def test_faults_of_builds_are_noticed(first, last, change, fault, monkeypatch):
    elastic = checking.elastic

    def alter(model, rate):
        if first <= rate <= last:
            change(model[0])

    monkeypatch.setattr(checking, "elastic", lambda model, inputs: _Altered(elastic(model, inputs), alter, model))
    with pytest.raises(BrokenPropertyError, match=fault):
        check(_around(), X, (3, 2))


def test_the_command_goes_on_where_it_was_and_writes_the_page(tmp_path, capsys, monkeypatch):
    findings, out = tmp_path / "new" / "findings.jsonl", tmp_path / "models.md"
    given = ["squeezenet1_1", "shufflenet_v2_x0_5", "--findings", str(findings), "--out", str(out)]
    assert zoo.main(given) == 1
    said = capsys.readouterr().out
    assert "[1/2] shufflenet_v2_x0_5   no: at rate 0.5" in said
    assert "stage4.0.branch1.2.weight" in said
    assert "1 of 2 work" in said
    assert [json.loads(one)["name"] for one in findings.read_text().splitlines()] == [
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
    ]
    written = out.read_text()
    assert "**1 of 2 work.**" in written
    assert "| `squeezenet1_1` | 1,235,496 |" in written
    assert "| `shufflenet_v2_x0_5` | 1,366,792 | at rate 0.5" in written
    monkeypatch.setattr(torchvisions, "make", lambda *_: pytest.fail("made again"))
    assert zoo.main(given) == 1
    assert out.read_text() == written


def test_models_that_are_not_there_are_named(capsys):
    assert zoo.main(["resnet1"]) == 2
    assert "no classification model of torchvision 'resnet1'; expected one of resnet1" in capsys.readouterr().err


def test_a_file_that_is_no_list_of_findings_is_named(tmp_path, capsys):
    path = tmp_path / "findings.jsonl"
    path.write_text('{"name": "resnet18"}\n')
    assert zoo.main(["resnet18", "--findings", str(path)]) == 2
    assert f"line 1 of {path} is no finding" in capsys.readouterr().err


def test_a_page_names_sizes_and_where_it_was_made():
    one = Finding(
        name="maxvit_t", made="here; commit 12ab", size=224, parameters={1.0: 9, 0.5: 4}, explained=["layer norm"]
    )
    text = page([one], "1.2", 0)
    assert "| `maxvit_t` (224 x 224) | 9 | 4 |" in text
    assert "| layer norm |" in text
    assert "on: here; at 12ab." in text
    assert "Those that do not" not in text
