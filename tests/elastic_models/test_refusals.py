"""What cannot be followed: one error that names the layer and says what to do; or the axis stays whole."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from heterofl_flwr.common.errors import ConfigError, UnsupportedLayerError
from heterofl_flwr.elastic_models import elastic, rules, stand_in
from tests.elastic_models.families import Then

X = torch.randn(2, 3)


def _around(*inner):
    return nn.Sequential(nn.Linear(3, 8), *inner, nn.Linear(8, 2))


def test_code_that_depends_on_values_is_refused_by_name():
    with pytest.raises(UnsupportedLayerError) as caught:
        elastic(_around(nn.Sequential(Then(lambda self, x: x if x.sum() > 0 else -x))), X)
    message = str(caught.value)
    assert "layer 1.0 of type Then cannot be traced" in message
    assert "@heterofl_flwr.elastic_models.stand_in(Then)" in message


@pytest.fixture
def turned():
    """Return an operator that torch does not know; its kernel makes no use of torch's operators."""
    library = torch.library.Library("heterofl_test", "FRAGMENT")
    library.define("turned(Tensor x) -> Tensor")
    library.impl("turned", lambda x: torch.empty_like(x), "Meta")
    yield torch.ops.heterofl_test.turned
    rules.STAND_INS.pop(torch.ops.heterofl_test.turned, None)
    library._destroy()


def test_an_unknown_operator_keeps_channels_whole_until_taught(turned):
    model = _around(Then(lambda self, x: turned(x)))
    with pytest.warns(UserWarning, match=r"heterofl_test.turned is not known .*can say what it does.*layer 1 of type"):
        assert elastic(model, X).plan(0.5).shapes["0.weight"] == (8, 3)

    @stand_in(turned)
    def kept(x):
        return x.clone()

    assert elastic(model, X).plan(0.5).shapes["0.weight"] == (4, 3)


def test_a_stand_in_is_for_layer_types_and_operators():
    for wrong in ((), (3,), (nn.Linear(1, 1),), (torch.relu,)):
        with pytest.raises(ConfigError, match="stand_in takes subclasses of"):
            stand_in(*wrong)


def _reach(function, **layers):
    """Return the width that is left of eight channels between two linear layers."""
    return elastic(_around(Then(function, **layers)), X).plan(0.5).shapes["0.weight"][0]


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda self, x: x.view(-1, 8), 8),
        (lambda self, x: x.view(-1, (x.shape[1] - 4) * 2), 8),
        (lambda self, x: x.view(-1, 2, x.shape[1] // 2).flatten(1), 4),
        (lambda self, x: x[:, 1::2].mean(1, keepdim=True) + x, 4),
        (lambda self, x: torch.stack([x[:, 1::2], x[:, ::2]], -1).flatten(1), 4),
        (lambda self, x: x[:, 2:3] + x, 6),
        (lambda self, x: x.narrow(1, 0, 4).mean(1, keepdim=True) + x, 6),
        (lambda self, x: torch.cat(x.split(x.shape[1] // 2, 1), 1), 4),
        (lambda self, x: torch.cat(x.split([2, 6], 1), 1), 8),
        (lambda self, x: torch.cat(x.chunk(4, 1), 1), 4),
        (lambda self, x: torch.cat(x.unsafe_split_with_sizes([2, 6], 1), 1), 8),
        (lambda self, x: torch.cat(torch.hsplit(x, sections=2), 1), 4),
        (lambda self, x: torch.cat(x.hsplit(2, 5), 1), 8),
        (lambda self, x: torch.stack(x.unbind(1), 1), 8),
        (lambda self, x: x.select(1, 1)[:, None] + x, 5),
        (lambda self, x: torch.arange(18).view(2, 9)[:, x.shape[1] // 4 : x.shape[1] // 4 + 1] + x, 8),
        (lambda self, x: torch.arange(18).view(2, 9)[:, x.shape[1] - 2, None] + x, 8),
        (lambda self, x: torch.arange(18).view(2, 9).narrow(1, x.shape[1] - 2, 1) + x, 8),
        (lambda self, x: x[:, torch.arange(8)], 8),
        (lambda self, x: x.T[:, None, None][:, torch.zeros(2).long(), :, torch.arange(2)].flatten(1), 4),
        (lambda self, x: x.unfold(1, 2, 2).flatten(1), 8),
        (lambda self, x: torch.as_strided(x, (2, 8), (8, 1)), 8),
        (lambda self, x: nn.functional.pad(nn.functional.pad(x, (-1, 0)), (1, 0)), 8),
        (lambda self, x: x + torch.arange(8), 8),
        (lambda self, x: x + x.new_full((x.shape[1],), 2.0), 4),
        (lambda self, x: x + x.argmax(1, keepdim=True), 8),
        (lambda self, x: x * x.norm(dim=1, keepdim=True).expand(-1, 8), 8),
        (lambda self, x: x * x.norm(dim=1, keepdim=True).expand_as(x), 4),
        (lambda self, x: nn.functional.layer_norm(x, x.shape[1:]), 4),
        (lambda self, x: x / nn.functional.pairwise_distance(x, torch.zeros_like(x), keepdim=True), 4),
        (lambda self, x: x.reshape(-1, 1, x.numel() // 2).reshape(-1, x.size(1)), 4),
    ],
)
@pytest.mark.filterwarnings("ignore:at rate 0.5 a slice keeps")
def test_what_code_says_about_a_width_is_kept(function, kept):
    assert _reach(function) == kept


X12 = torch.randn(2, 12)


def test_a_decoder_that_forward_does_not_call_stays_whole():
    encoder = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    decoder = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12))
    # As Lightning's examples write it: forward embeds, and a training step of the user's calls the decoder.
    model = Then(lambda self, x: self.encoder(x), encoder=encoder, decoder=decoder)
    with pytest.warns(UserWarning, match=r"no use of decoder on the example inputs.*fixed=\[") as caught:
        build = elastic(model, X12)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for rate in (1.0, 0.5, 0.0625):
        small = build(rate)
        loss = (small.decoder(small.encoder(X12)) - X12).square().mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in small.parameters())
        assert all(map(torch.equal, model.decoder.parameters(), small.decoder.parameters()))
    assert build.plan(0.5).shapes["encoder.0.weight"] == (8, 12)
    assert build(0.5).decoder[1].running_mean.shape == (16,)
    around = Then(lambda self, x: self.model.decoder(self.model.encoder(x)), model=model)  # which uses it
    assert elastic(around, X12, fixed=["model.encoder.2"]).plan(0.5).shapes["model.decoder.0.weight"] == (8, 3)


def test_what_is_used_in_one_mode_only_is_used():
    def forward(self, x):
        x = self.first(x)
        return (self.last(x), self.extra(x)) if self.training else self.last(x)

    model = Then(forward, first=nn.Linear(12, 8), last=nn.Linear(8, 3), extra=nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert elastic(model, X12).plan(0.5).shapes["extra.weight"] == (3, 4)


@pytest.mark.parametrize(
    ("hook", "text"),
    [
        (lambda model, output: setattr(model, "seen", output), "sets seen of the model given"),
        (lambda model, output: model.notes.update(out=output), r"sets notes\.out of the model given"),
        (
            lambda model, output: model.notes["all"].append(output),
            r"sets notes\.all\.0, notes\.all\.1 of the model given",
        ),
        (lambda model, output: output + model.extra(output), r"uses extra\.weight of the model given"),
        (lambda model, output: model.calls.add_(1) and None, "uses calls of the model given"),
    ],
)
def test_code_that_holds_the_model_given_is_refused(hook, text):
    model = Then(lambda self, x: self.last(self.first(x)), first=nn.Linear(3, 8), last=nn.Linear(8, 2))
    model.extra, model.notes = nn.Linear(8, 8, bias=False), {"all": []}
    model.register_buffer("calls", torch.zeros(()))
    model.first.register_forward_hook(lambda layer, given, output: hook(model, output))
    with pytest.raises(UnsupportedLayerError, match=text):
        elastic(model, X)
    assert not hasattr(model, "seen")
    assert (model.notes, model.calls) == ({"all": []}, 0)


def test_tensors_kept_from_a_call_are_whole_and_named():
    def forward(self, x):
        self.kept = getattr(self, "kept", None)
        self.kept = torch.ones(x.shape[1]) if self.kept is None else self.kept
        return x * self.kept

    model = _around(Then(forward))
    assert elastic(model, X)(0.5)[0].weight.shape == (4, 3)
    model(X)
    with pytest.warns(UserWarning, match=r"1\.kept is a tensor .* give a fresh model"):
        build = elastic(model, X)
    assert torch.equal(build(0.5)(X), model(X))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_weight_that_a_hook_computes_is_followed():
    WeightNorm.apply(layer := nn.Linear(8, 8), "weight", 0)
    build = elastic(model := _around(layer), X)
    small = build(0.5)
    assert build.plan(0.5).shapes["1.weight_v"] == (4, 4)
    expected = nn.functional.normalize(layer.weight_v[:4, :4], dim=1) * layer.weight_g[:4]
    torch.testing.assert_close(small[1](X.new_ones(1, 4)), expected.sum(1)[None] + layer.bias[:4])
    assert torch.equal(build(1.0)(X), model(X))


@pytest.mark.parametrize("kind", ["graph", "generator"])
def test_models_that_cannot_be_copied_or_followed_are_refused(kind):
    model = _around()
    if kind == "graph":
        model = torch.fx.symbolic_trace(model)
    else:
        model.numbers = iter(number for number in range(3))
    with pytest.raises(UnsupportedLayerError, match=r"cannot be copied|compiled by"):
        elastic(model, X)


@pytest.mark.parametrize("name", ["fixed", "outputs"])
def test_a_text_in_place_of_a_list_of_names_is_an_error(name):
    with pytest.raises(ConfigError, match=f"{name} is 'head'; expected a list of names, such as"):
        elastic(nn.Linear(3, 2), torch.zeros(1, 3), **{name: "head"})


def test_layers_without_shapes_are_named():
    """The error was torch's, of a method of a tensor."""
    with pytest.raises(UnsupportedLayerError, match=r"parameters 0\.bias, 0\.weight have no shape yet: run one batch"):
        elastic(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), torch.zeros(1, 3))
