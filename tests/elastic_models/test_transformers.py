"""Models of Hugging Face, from configurations: nothing is downloaded."""

import pytest
import torch

from heterofl_flwr import HeteroFL, Slicing
from heterofl_flwr.common.errors import ConfigError, UnsupportedLayerError
from heterofl_flwr.elastic_models import elastic
from simulations.model_zoo.check import check
from simulations.model_zoo.models import draw_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed: heterofl-flwr[huggingface]")

WORDS, LABELS = 50, 3
SMALL = {"vocab_size": WORDS, "max_position_embeddings": 16, "num_labels": LABELS}


SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}


def _bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=2, **SHAPE, **SMALL))


def _distilbert():
    config = transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **SMALL)
    return transformers.DistilBertForSequenceClassification(config)


def _gpt2():
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_inner": 48, "n_positions": 16, "vocab_size": WORDS}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False, **shape))


def _bert_with_tied_words():
    return transformers.BertForMaskedLM(transformers.BertConfig(num_hidden_layers=1, **SHAPE, **SMALL))


@pytest.fixture
def words():
    return torch.randint(WORDS, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [_bert_with_tied_words, _gpt2])
def test_all_holds_that_holds_of_torchvisions_models(make, words):
    model = make().double()
    draw_weights(model, 0)
    found = check(model, words)
    assert found.difference < 1e-12
    assert not found.unproven
    assert found.parameters[0.3] < 0.25 * found.parameters[1.0]


@pytest.mark.parametrize("make", [_bert, _distilbert])
def test_a_slice_takes_masks_and_labels(make, words):
    build, mask = elastic(make(), words), torch.ones_like(words)
    ends = ("layer.0.attention.self.query.weight", "layer.0.attention.q_lin.weight")
    assert [own for name, own in build.plan(0.3).shapes.items() if name.endswith(ends)] == [(4 * 3, 10)]  # by head
    small = build(0.5)
    mask[1, 6:] = 0
    answer = small(input_ids=words, attention_mask=mask, labels=torch.tensor([0, 2]))
    answer.loss.backward()
    assert answer.logits.shape == (2, LABELS)
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize("rule", ["rolling", "random-level"])
def test_heads_that_are_rotated_in_part_have_no_slices_that_move(rule, words):
    config = transformers.GPTNeoXConfig(
        num_hidden_layers=1, use_cache=False, **{**SHAPE, "num_attention_heads": 2}, **SMALL
    )
    build = elastic(transformers.GPTNeoXForCausalLM(config), words)
    assert HeteroFL(build, "a1-b1").federation.architecture.plan(0.5).parameters
    with pytest.raises(ConfigError, match=r"query_key_value.* have more entries of some channels than of others"):
        HeteroFL(build, "a1-b1", slicing=Slicing(slice_rule=rule))


def test_experts_are_cut_alike_to_widths_their_product_takes(words):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(num_hidden_layers=1, use_cache=False, **SHAPE, **SMALL, **experts)
    model = transformers.MixtralForCausalLM(config)
    with pytest.raises(UnsupportedLayerError, match=r"MixtralExperts.* multiples of 4, .*: give multiple_of=4"):
        elastic(model, words)
    build = elastic(model, words, multiple_of=4)
    assert build.plan(0.5).shapes["model.layers.0.mlp.experts.down_proj"] == (4, 16, 24)
    assert build(0.3).train()(words, labels=words).loss.isfinite()
