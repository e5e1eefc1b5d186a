"""Models with updates: what they compute, and what of them travels."""

import pytest
import torch
from torch import nn

from heterofl_flwr import Plan, lora
from heterofl_flwr.adapters import StackAggregator, merge_updates, with_updates
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.errors import ConfigError, UnsupportedLayerError
from tests.adapters.nets import Net, adapted, gpt2, outputs, peft, ranks_of, without_rows
from tests.federation.tiny import make_app, play


class ScaledEmbedding(nn.Embedding):
    """An embedding that scales its output, as Gemma's."""

    embed_scale = 3.0

    def forward(self, words):
        return super().forward(words) * self.embed_scale


class ScaledNet(Net):
    def __init__(self):
        super().__init__()
        self.words = ScaledEmbedding(*self.words.weight.shape)


LEVELS = {
    "linear": lora(adapted(target_modules=["words", "hidden"])),
    "gpt2": lora(adapted(gpt2, fan_in_fan_out=True)),
    "rslora": lora(adapted(target_modules=["words", "hidden"], use_rslora=True)),
    "scaled": lora(adapted(ScaledNet, target_modules=["words"])),
}


def parts_of(model):
    """Return the parameters of each adapter by the names of their parts, A, B and update."""
    found = {}
    for name, own in model.named_parameters():
        layer, _, part = name.partition(".lora_")
        if part:
            found.setdefault(layer, {})[part.removeprefix("embedding_").partition(".")[0]] = own
    return found


@pytest.mark.parametrize("name", LEVELS)
def test_a_fresh_update_changes_nothing_and_a_full_one_takes_the_place_of_its_adapter(name):
    plain, model = LEVELS[name](0.5), with_updates(LEVELS[name])(0.5)
    torch.testing.assert_close(outputs(model), outputs(plain))
    with torch.no_grad():
        for part in parts_of(model).values():
            part["update"].copy_(part["B"] @ part["A"])
            part["B"].zero_()
    torch.testing.assert_close(outputs(model), outputs(plain))
    with model.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(outputs(model), outputs(plain))


@pytest.mark.parametrize("name", LEVELS)
def test_a_merged_model_computes_the_same_without_peft_and_leaves_the_base_as_it_was(name):
    plain, model = LEVELS[name](0.5), with_updates(LEVELS[name])(0.5)
    before = outputs(plain)
    with torch.no_grad():
        for part in parts_of(model).values():
            part["update"].normal_()
    merged = merge_updates(model)
    assert not any("lora" in key for key in merged.state_dict())
    torch.testing.assert_close(outputs(merged), outputs(model))
    torch.testing.assert_close(outputs(plain), before)


def test_layers_whose_adapter_was_deleted_have_no_level_and_no_update():
    whole = adapted(target_modules=["hidden"])
    whole.add_adapter("second", peft.LoraConfig(r=8, target_modules=["words"]))
    whole.set_adapter("second")
    whole.delete_adapter("default")
    nn.init.normal_(whole.double().get_parameter("base_model.model.words.lora_embedding_A.second"))
    build = with_updates(lora(whole))
    level = build(0.5)
    found = Plan.of(build(1.0), level).shapes
    assert {name.partition(".words.")[2]: shape for name, shape in found.items()} == {
        "lora_embedding_A.second": (4, 20),
        "lora_embedding_B.second": (6, 4),
        "lora_update.second": (6, 20),
    }
    torch.testing.assert_close(outputs(level), outputs(without_rows(whole, ranks_of(level))))


@pytest.mark.parametrize(
    ("config", "found"), [({}, "conv is Conv1d"), ({"target_modules": ["hidden"], "use_dora": True}, "with DoRA")]
)
def test_layers_to_which_an_update_cannot_be_added_are_rejected(config, found):
    with pytest.raises(UnsupportedLayerError, match=f"{found}; expected adapters of linear layers and embeddings"):
        with_updates(lora(adapted(**config)))(1.0)


def test_a_model_without_updates_cannot_be_merged():
    with pytest.raises(ConfigError, match="takes a model of with_updates, got Net without updates"):
        merge_updates(Net())


@pytest.mark.parametrize("upload", ["float32", "float16"])
def test_updates_are_sent_and_not_returned(upload):
    build = with_updates(LEVELS["linear"])

    def train(message, context):
        model = submodel(message, build)
        seen.append({name: own.clone() for name, own in model.named_parameters() if "update" in name})
        with torch.no_grad():
            for own in model.parameters():
                own += own.requires_grad
        return reply(message, model, num_examples=1)

    seen = []
    run = play(make_app(train), "a1-c1", 2, 2, build=build, aggregator=StackAggregator, upload=upload)
    assert run.log.failures == {}
    first, _, second, _ = seen
    assert not any(own.any() for own in first.values())
    assert all(own.any() for own in second.values())
    sizes = {name: own.numel() for name, own in run.state.items()}
    updates = sum(number for name, number in sizes.items() if "update" in name)
    assert run.log.bytes_down > 2 * 8 * updates > 0  # float64
    assert run.log.bytes_up < 2 * 8 * (sum(sizes.values()) - updates)
