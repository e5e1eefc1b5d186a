"""``lora``: one frozen model, adapters of many ranks; each level beside the full model with zeros in the rest."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import heterofl_flwr
from heterofl_flwr.common.errors import ConfigError, UnsupportedLayerError
from heterofl_flwr.core import Mix, Plan, width
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.core.label_rows import find_label_rows
from heterofl_flwr.core.randomness import initial_state
from tests.adapters.nets import CASES, Net, adapted, gpt2, load_peft, outputs, ranks_of, without_rows

lora = heterofl_flwr.lora


@pytest.mark.parametrize("case", CASES)
def test_a_level_is_the_full_rank_with_zeros_in_the_rest_and_peft_loads_what_it_saves(case, tmp_path):
    model = CASES[case]()
    build = lora(model)
    assert torch.equal(outputs(build(1.0)), outputs(model))
    level = build(0.3)
    small = ranks_of(level)
    assert small == {name: width(rank, 0.3) for name, rank in ranks_of(model).items()}
    torch.testing.assert_close(outputs(level), outputs(without_rows(model, small)), rtol=1e-12, atol=1e-12)
    level.save_pretrained(tmp_path)
    trained = {name for name, own in level.named_parameters() if own.requires_grad}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(own.numel() for own in saved.values()) <= sum(level.get_parameter(name).numel() for name in trained)
    base = copy.deepcopy(model).unload()  # the model without adapters
    for name, own in level.named_parameters():  # trained biases are saved; the base has them as they were
        assert name in trained or own is model.get_parameter(name)
    torch.testing.assert_close(
        outputs(load_peft().PeftModel.from_pretrained(base, tmp_path)), outputs(level), rtol=1e-12, atol=1e-12
    )


def test_levels_of_a_process_share_the_frozen_parameters():
    model = adapted(gpt2, fan_in_fan_out=True)
    build = lora(model)
    levels = [build(rate) for rate in (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)]
    tensors = [one for level in levels for one in itertools.chain(level.parameters(), level.buffers())]
    stored = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    base = sum(own.numel() * 8 for own in model.get_base_model().parameters() if not own.requires_grad)
    adapters = sum(own.numel() * 8 for level in levels for own in exchanged_parameters(level).values())
    assert sum(stored.values()) == base + adapters
    assert all(level.get_parameter(name) is model.get_parameter(name) for level in levels for name in build.frozen)


def test_only_adapters_and_what_else_is_trained_are_exchanged():
    build = lora(CASES["plain"]())
    plan = Plan.of(build(1.0), build(0.5))
    assert {name.removeprefix("base_model.model."): shape for name, shape in plan.shapes.items()} == {
        "words.lora_embedding_A.default": (4, 20),
        "words.lora_embedding_B.default": (6, 4),
        "conv.lora_A.default.weight": (4, 6, 3),
        "conv.lora_B.default.weight": (8, 4, 1),
        "hidden.lora_A.default.weight": (4, 8),
        "hidden.lora_B.default.weight": (10, 4),
        "head.modules_to_save.default.weight": (4, 10),
        "head.modules_to_save.default.bias": (4,),
    }
    assert list(initial_state(build, 0.5, 0)) == list(plan.axes)
    assert find_label_rows(build, Mix.parse("a1-e1")) == tuple(list(plan.axes)[-2:])
    assert find_label_rows(lora(adapted()), Mix.parse("a1-e1")) == ()  # the last layer is not trained


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)


REFUSED = {
    "no adapter": (Net, ConfigError, "lora takes a PeftModel, as peft.get_peft_model returns one, got Net"),
    "pissa": (lambda: adapted(target_modules=["hidden"], init_lora_weights="pissa"), ConfigError, "changes the frozen"),
    "inference": (lambda: adapted(inference_mode=True), ConfigError, "no adapter can be trained: load it with"),
    "tied": (
        lambda: adapted(gpt2, target_modules=["wte", "lm_head"], ensure_weight_tying=True),
        ConfigError,
        "ensure_weight_tying ties adapters to each other",
    ),
    "attention": (
        lambda: adapted(Attention, target_modules=["attention"]),
        UnsupportedLayerError,
        "layer attention of type MultiheadAttention overwrites its frozen weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_reason(case):
    load_peft()
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        lora(make())
