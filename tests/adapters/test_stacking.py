"""Models with updates: what they compute, and what of them travels."""

import pytest
import torch

from heterofl_flwr import lora
from heterofl_flwr.adapters import StackAggregator, merge_updates, with_updates
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.errors import UnsupportedLayerError
from tests.adapters.nets import adapted, gpt2, outputs
from tests.federation.tiny import make_app, play

LEVELS = {
    "linear": lora(adapted(target_modules=["words", "hidden"])),
    "gpt2": lora(adapted(gpt2, fan_in_fan_out=True)),
    "rslora": lora(adapted(target_modules=["words", "hidden"], use_rslora=True)),
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


def test_convolutions_are_refused():
    with pytest.raises(UnsupportedLayerError, match=r"conv is Conv1d; expected adapters of linear layers"):
        with_updates(lora(adapted()))(1.0)


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
