"""LoRA adapters of eight ranks on one frozen model: the memory that a process takes.

The model is a GPT-2 with random weights. A level is what a client of that rate loads from a message of the full rank.
"""

import argparse

import torch
from torch import nn

from heterofl_flwr import lora
from heterofl_flwr.core.randomness import initial_state
from heterofl_flwr.errors import extra
from heterofl_flwr.local_model import model_at
from heterofl_flwr.nn.build import plan_between
from simulations.bench.measure import Goal, peak_of

RATES = tuple(number / 8 for number in range(8, 0, -1))
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=11, help="of the model, 27 MiB each (%(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="at rate 1 (%(default)s, as in peft)")


def run(options: argparse.Namespace) -> list[Goal]:
    with extra("lora"):
        from peft import LoraConfig, get_peft_model
    with extra("huggingface"):
        from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_layer=options.layers, vocab_size=1024))
    size = sum(own.numel() * own.element_size() for own in base.parameters())
    targets = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=targets, fan_in_fan_out=True)
    build = lora(get_peft_model(base, config))
    state = initial_state(build, 1.0, 0)
    levels: list[nn.Module] = []

    def load() -> None:
        levels.extend(model_at(build, state, 1.0, rate) for rate in RATES)

    added = peak_of(load)
    sent = {rate: 4 * plan_between(build, 1.0, rate).parameters / MIB for rate in RATES[1:]}
    print(f"base {size / MIB:.0f} MiB, eight levels add {added / MIB:.1f} MiB at their peak")
    print(f"a message: {', '.join(f'{rate:g}: {own:.2f} MiB' for rate, own in sent.items())}")
    shared = {own.data_ptr() for level in levels for own in level.parameters() if not own.requires_grad}
    print(f"frozen tensors in all levels: {len(shared)}, of the base: {len(list(base.parameters())) - len(state)}")
    return [Goal("memory of the base and eight levels, in bases", (size + added) / size, most=1.2)]
