"""Federated training with the maths alone: no Flower, no processes, one page.

Twenty clients with models of five sizes train one digit classifier on scikit-learn's 1,797 real images. Run it with
``python -m simulations.examples.digits_by_hand``; it takes a few seconds.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from heterofl_flwr.core import Aggregator, Mix, Plan, dynamic_rate, level_name
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.nn import CNN, class_mask, collect_moments, masked_cross_entropy, with_static_norm

ROUNDS, CLIENTS, SEED = 5, 20, 0
MIX = Mix.parse("a1-b1-c1-d1-e1")


def build(rate: float) -> CNN:
    return CNN(channels=1, classes=10, hidden=(32, 64, 128), rate=rate, global_rate=MIX.global_rate)


def train(model: nn.Module, images: Tensor, targets: Tensor, generator: torch.Generator) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    seen = class_mask(targets.unique(), 10)
    for _ in range(3):
        for batch in torch.randperm(len(targets), generator=generator).split(10):
            optimizer.zero_grad()
            masked_cross_entropy(model(images[batch]), targets[batch], seen).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def main() -> None:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images, targets = map(torch.from_numpy, load_digits(return_X_y=True))
    images = (images.float().view(-1, 1, 8, 8) - 4.88) / 6.02
    order = torch.randperm(len(images), generator=generator)
    # 70 images for each client; what is left is the test set.
    shards, test = order[: CLIENTS * 70].view(CLIENTS, 70), order[CLIENTS * 70 :]

    model = build(MIX.global_rate)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    plans = {rate: Plan.of(model, build(rate)) for rate in MIX.rates}
    for server_round in range(1, ROUNDS + 1):
        aggregator = Aggregator(state, model.label_rows)
        rates = [dynamic_rate(MIX, seed=SEED, server_round=server_round, partition=client) for client in range(CLIENTS)]
        for client, rate in enumerate(rates):
            local = build(rate)
            local.load_state_dict(plans[rate].extract(state))
            mine = shards[client]
            train(local, images[mine], targets[mine], torch.Generator().manual_seed(derive(SEED, server_round, client)))
            reply = {name: parameter.detach() for name, parameter in local.named_parameters()}
            aggregator.add(plans[rate], reply, labels=targets[mine].unique().tolist())
        state = aggregator.result()
        model.load_state_dict(state)
        moments = collect_moments(model, [images[shard] for shard in shards], kind="fixed")
        with torch.inference_mode():
            answers = with_static_norm(model, moments)(images[test]).argmax(1)
        accuracy = (answers == targets[test]).float().mean().item()
        shares = ", ".join(f"{rates.count(rate)} x {level_name(rate)}" for rate in MIX.rates)
        print(f"round {server_round}: {shares}; global model {accuracy:.1%} of {len(test)} test images")


if __name__ == "__main__":
    main()
