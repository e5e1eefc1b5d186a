"""``lora``: one frozen model, adapters of many ranks; each level beside the full model with zeros in the rest."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import heterofl_flwr
from heterofl_flwr.core import Axis, Mix, Plan, width
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.core.randomness import initial_state
from heterofl_flwr.core.reply_checks import find_label_rows
from heterofl_flwr.errors import ConfigError, HeteroFLError, ShapeError, UnsupportedLayerError
from heterofl_flwr.local_model import load_parameters
from tests.adapters.nets import CASES, WHOLE, Net, adapted, gpt2, outputs, peft, ranks_of, without_rows

lora = heterofl_flwr.lora
RATES = (1.0, 0.5, 0.3, 0.125)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("case", CASES)
def test_a_level_computes_what_the_full_rank_does_without_the_other_rows_and_columns(case, rate):
    model = CASES[case]()
    level = lora(model)(rate)
    full, small = ranks_of(model), ranks_of(level)
    assert small == {name: width(rank, rate) for name, rank in full.items()}
    torch.testing.assert_close(outputs(level), outputs(without_rows(model, small)), rtol=1e-12, atol=1e-12)
    if rate == 1:
        assert torch.equal(outputs(level), outputs(model))


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_a_level_saves_and_computes_the_same(case, tmp_path):
    model = CASES[case]()
    level = lora(model)(0.3)
    level.save_pretrained(tmp_path)
    trained = {name for name, own in level.named_parameters() if own.requires_grad}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(own.numel() for own in saved.values()) <= sum(level.get_parameter(name).numel() for name in trained)
    base = copy.deepcopy(model).unload()  # the model without adapters
    for name, own in level.named_parameters():  # trained biases are saved; the base has them as they were
        assert name in trained or own is model.get_parameter(name)
    torch.testing.assert_close(
        outputs(peft.PeftModel.from_pretrained(base, tmp_path)), outputs(level), rtol=1e-12, atol=1e-12
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


def test_what_is_trained_in_one_level_changes_no_other_and_not_the_model():
    model = adapted()
    build = lora(model)
    before = {name: own.clone() for name, own in model.named_parameters()}
    level = build(0.5).train()
    optimizer = torch.optim.SGD(level.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    level(torch.zeros(2, 9, dtype=torch.int64)).sum().backward()
    optimizer.step()
    assert not torch.equal(outputs(level), outputs(build(0.5)))
    assert all(torch.equal(own, before[name]) for name, own in model.named_parameters())
    assert model.peft_config["default"].r == 8


def test_only_adapters_and_what_else_is_trained_are_exchanged():
    build = lora(CASES["plain"]())
    plan = Plan.of(build(1.0), build(0.5))
    prefix = "base_model.model."
    assert plan.shapes == {
        f"{prefix}words.lora_embedding_A.default": (4, 20),
        f"{prefix}words.lora_embedding_B.default": (6, 4),
        f"{prefix}conv.lora_A.default.weight": (4, 6, 3),
        f"{prefix}conv.lora_B.default.weight": (8, 4, 1),
        f"{prefix}hidden.lora_A.default.weight": (4, 8),
        f"{prefix}hidden.lora_B.default.weight": (10, 4),
        f"{prefix}head.modules_to_save.default.weight": (4, 10),
        f"{prefix}head.modules_to_save.default.bias": (4,),
    }
    assert plan.axes[f"{prefix}hidden.lora_B.default.weight"] == (Axis(10, 10), Axis(8, 4))
    assert list(initial_state(build, 0.5, 0)) == list(plan.axes)
    rows = find_label_rows(build, Mix.parse("a1-e1"))
    assert rows == (f"{prefix}head.modules_to_save.default.weight", f"{prefix}head.modules_to_save.default.bias")
    for config in ({}, {"target_modules": ["conv"], "modules_to_save": ["hidden"]}):
        assert find_label_rows(lora(adapted(**config)), Mix.parse("a1-e1")) == ()  # the last layer is not trained


def test_a_level_loads_its_part_of_the_full_models_parameters():
    one, other = adapted(seed=0), adapted(seed=1)
    state = {name: own.detach() for name, own in exchanged_parameters(lora(other)(1.0)).items()}
    other.load_state_dict(dict(one.state_dict()) | state)  # one's frozen parameters, other's adapters
    build = lora(one)
    level = build(0.5)
    load_parameters(level, Plan.of(build(1.0), level).extract(state))
    torch.testing.assert_close(outputs(level), outputs(without_rows(other, ranks_of(level))), rtol=1e-12, atol=1e-12)


def test_ranks_are_rounded_up_to_a_multiple_but_not_beyond_their_own():
    build = lora(adapted(rank_pattern={"hidden": 3}), multiple_of=4)
    ranks = {name.rpartition(".")[2]: rank for name, rank in ranks_of(build(0.125)).items()}
    assert ranks == {"words": 4, "conv": 4, "hidden": 3}


def test_the_scaling_and_the_config_are_those_of_the_full_rank():
    config = lora(adapted(r=8, lora_alpha=16))(0.3).peft_config["default"]
    assert (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (3, 6, {}, {})
    assert type(config.lora_alpha) is int


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 8, 3, groups=2), nn.Flatten())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)


def two() -> peft.PeftModel:
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(target_modules=WHOLE))
    return model


def merged() -> peft.PeftModel:
    model = adapted(target_modules=["hidden"])
    model.merge_adapter()
    return model


REFUSED = {
    "no adapter": (Net, ConfigError, "lora takes a PeftModel, as peft.get_peft_model returns one, got Net"),
    "two": (two, ConfigError, "adapters default, second; expected one"),
    "IA3": (
        lambda: peft.get_peft_model(Net(), peft.IA3Config(target_modules=["hidden"], feedforward_modules=[])),
        ConfigError,
        "config is a IA3Config; expected a LoraConfig",
    ),
    "pissa": (
        lambda: adapted(target_modules=["hidden"], init_lora_weights="pissa"),
        ConfigError,
        "'pissa', which changes the frozen",
    ),
    "inference": (
        lambda: adapted(inference_mode=True),
        ConfigError,
        "no adapter can be trained: load it with is_trainable",
    ),
    "merged": (merged, UnsupportedLayerError, "layer hidden of type Linear has its adapter merged"),
    "attention": (
        lambda: adapted(Attention, target_modules=["attention"]),
        UnsupportedLayerError,
        "layer attention of type MultiheadAttention overwrites its frozen weight",
    ),
    "grouped": (
        lambda: adapted(grouped, target_modules=["0"]),
        UnsupportedLayerError,
        r"layer 0 of type Conv1d has lora_B.default.weight \(8, 4, 1\), expected one axis of 8",
    ),
}


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_reason(case):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        lora(make())


def test_multiples_and_rates_are_checked():
    for multiple in (0, 1.5, "2"):
        with pytest.raises(ConfigError, match=rf"multiple_of is {multiple!r}; expected a whole number from 1"):
            lora(adapted(), multiple_of=multiple)
    with pytest.raises(HeteroFLError, match=r"a rate of 1\.5 is not usable"):
        lora(adapted())(1.5)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_a_model_that_was_built_by_hand_has_a_plan_too_but_none_for_a_grouped_convolution():
    lora(adapted())  # the rules of its layers
    assert Plan.of(adapted(r=8), adapted(r=3)).shapes["base_model.model.hidden.lora_A.default.weight"] == (3, 8)
    lora(adapted(target_modules=["conv"]))
    with pytest.raises(ShapeError, match="expected one axis of 8"):
        Plan.of(*(adapted(grouped, target_modules=["0"], r=rank) for rank in (8, 4)))


def test_layers_whose_adapter_was_deleted_have_no_level():
    whole = adapted(target_modules=["hidden"])
    whole.add_adapter("second", peft.LoraConfig(r=8, target_modules=["words"]))
    whole.set_adapter("second")
    whole.delete_adapter("default")
    nn.init.normal_(whole.get_parameter("base_model.model.words.lora_embedding_A.second"))
    build = lora(whole)
    level = build(0.5)
    found = Plan.of(build(1.0), level).shapes
    assert {name.partition(".words.")[2]: shape for name, shape in found.items()} == {
        "lora_embedding_A.second": (4, 20),
        "lora_embedding_B.second": (6, 4),
    }
    torch.testing.assert_close(outputs(level), outputs(without_rows(whole, ranks_of(level))))
