"""Models with LoRA adapters, from configurations: nothing is downloaded.

peft and transformers take seconds to load, so the tests that use them load them, not the collection of all tests.
"""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

WORDS = 20


def load_peft():
    return pytest.importorskip("peft", reason="peft is not installed: heterofl-flwr[lora]")


def load_transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed: heterofl-flwr[huggingface]")


class Net(nn.Module):
    """An embedding, a convolution and two linear layers: adapters of every form."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 6)
        self.conv = nn.Conv1d(6, 8, 3)
        self.hidden = nn.Linear(8, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, words: Tensor) -> Tensor:
        found = torch.relu(self.conv(self.words(words).mT)).mean(2)
        return self.head(torch.relu(self.hidden(found)))


def gpt2() -> nn.Module:
    """Return a model whose layers are ``Conv1D`` and whose last layer is its embedding."""
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": WORDS}
    shape |= {"bos_token_id": 0, "eos_token_id": 0}
    transformers = load_transformers()
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False, **shape))


def llama() -> nn.Module:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers = load_transformers()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(use_cache=False, vocab_size=WORDS, **shape))


WHOLE = ["words", "conv", "hidden"]


def adapted(make: Callable[[], nn.Module] = Net, seed: int = 0, **config: object):
    """Return a model with adapters, in float64, all of whose parameters are drawn from a seed."""
    config = {"r": 8, "lora_alpha": 16, "target_modules": WHOLE if make is Net else "all-linear", **config}
    torch.manual_seed(seed)
    peft = load_peft()
    model = peft.get_peft_model(make(), peft.LoraConfig(**config)).double().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


CASES = {
    "plain": partial(adapted, modules_to_save=["head"]),
    "gpt2": partial(adapted, gpt2, fan_in_fan_out=True),
    "llama": partial(adapted, llama),
    "rslora": partial(adapted, use_rslora=True),
    "dora": partial(adapted, use_dora=True),
    "biases": partial(adapted, bias="all"),
    "ranks": partial(adapted, rank_pattern={"hidden": 3, "wo.*": 5}, alpha_pattern={"conv": 7}),
    "rsranks": partial(adapted, use_rslora=True, rank_pattern={"hidden": 3}, alpha_pattern={"conv": 7, "hidden": 5}),
}


def words() -> Tensor:
    return torch.randint(WORDS, (3, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    """Return what a model computes of the words."""
    found = model.eval()(words())
    return found if isinstance(found, Tensor) else found.logits


def ranks_of(model: nn.Module) -> dict[str, int]:
    """Return the rank of each adapted layer, by reading the shapes of A."""
    named = model.named_parameters()
    return {name.partition(".lora_")[0]: len(own) for name, own in named if ".lora_A" in name or "ding_A" in name}


@torch.no_grad()
def without_rows(model: nn.Module, ranks: dict[str, int]) -> nn.Module:
    """Return a copy of a model whose adapters are zero beyond these ranks: a level's twin."""
    twin = copy.deepcopy(model)
    for name, own in twin.named_parameters():
        layer, _, part = name.partition(".lora_")
        if part.startswith(("A", "embedding_A")):
            own[ranks[layer] :] = 0
        elif part.startswith(("B", "embedding_B")) and not part.endswith("bias"):
            own[:, ranks[layer] :] = 0
    return twin
