"""LoRA adapters of unequal rank in a Flower app: clients of ranks 16, 8, 4 and 2 fine-tune one language model.

A small GPT-2 reads modules of Python; ``python -m simulations.examples.lora_app FOLDER`` writes the adapters for peft.
"""

import argparse
import inspect
from importlib import import_module

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from heterofl_flwr import HeteroFL, LocalGrid, Plan, lora
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.report import Console


def rows_of(module: str) -> torch.Tensor:
    return torch.tensor(list(inspect.getsource(import_module(module)).encode())[:32_000]).view(-1, 64)


def fit(model: torch.nn.Module, rows: torch.Tensor, steps: int, lr: float) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for batch in torch.randint(len(rows), (steps, 16)):
        loss = model(input_ids=rows[batch], labels=rows[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.item())


torch.manual_seed(0)  # each process makes the same model; with a checkpoint: AutoModelForCausalLM.from_pretrained(...)
base = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=4))
fit(base, rows_of("argparse"), steps=100, lr=3e-3)
config = LoraConfig(r=16, lora_alpha=32, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
build = lora(get_peft_model(base, config))  # the only line that makes the clients' models unequal
client, server = ClientApp(), ServerApp()
answer_queries(client, build)


def load(context: Context, *, test: bool = False) -> torch.Tensor:
    rows = rows_of(["difflib", "inspect", "pickle", "optparse"][int(context.node_config["partition-id"]) % 4])
    return rows[(torch.arange(len(rows)) % 5 == 0) == test]


@client.train()
def train(message: Message, context: Context) -> Message:
    rows, task = load(context), Task(message, context, build, seed_torch=True)
    model = task.model()
    return task.reply(model, num_examples=len(rows), metrics={"train-loss": fit(model, rows, steps=20, lr=2e-3)})


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    rows, task = load(context, test=True), Task(message, context, build)
    model = task.model()
    with torch.inference_mode():
        loss = model(input_ids=rows, labels=rows).loss.item()
    return task.reply(num_examples=len(rows), metrics={"local-loss": loss})


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = HeteroFL(build, mix="a1-b1-c1-d1", callbacks=[Console()])
    result = strategy.start(grid, num_rounds=int(context.run_config.get("num-rounds", 3)))
    for number, level in enumerate("abcd"):
        model = build(0.5**number)
        model.load_state_dict(Plan.of(build(1.0), model).extract(result.arrays.to_torch_state_dict()), strict=False)
        model.save_pretrained(f"{context.run_config['folder']}/{level}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where the adapters of each rank are written")
    options = parser.parse_args()
    with LocalGrid(client, num_nodes=4) as local:
        server(local, Context(local.run.run_id, 1, {}, RecordDict(), vars(options)))
