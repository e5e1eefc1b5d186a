"""A message there and back: LocalGrid and RayGrid beside Flower's Ray backend."""

import argparse
import sys
import time
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.grids import LocalGrid, RayGrid
from simulations.bench.measure import Goal, output_of

NODES = 20
APP = "simulations.bench.messages:app"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=50, help=f"rounds of {NODES} messages")


def run(options: argparse.Namespace) -> list[Goal]:
    print(f"{NODES} nodes, {options.rounds} rounds of an empty message to each\n")
    grids: dict[str, Callable[[], LocalGrid | RayGrid]] = {
        "LocalGrid, in this process": lambda: LocalGrid(APP, NODES),
        "RayGrid, 2 actors": lambda: RayGrid(APP, NODES, at_once=2),
    }
    found = {}
    for name, make in grids.items():
        with make() as grid:
            found[name] = measure(grid, options.rounds)
    # In a process of its own: Ray leaves threads and handlers behind.
    command = [sys.executable, "-c", f"from simulations.bench import messages; messages.by_flower({options.rounds})"]
    found["Flower on Ray, 2 actors"] = float(output_of(command).split()[-1])
    for name, milliseconds in found.items():
        print(f"{name:<28}{milliseconds:8.3f} ms a message")
    return [
        Goal("milliseconds a message in this process", found["LocalGrid, in this process"], most=0.5),
        Goal("on RayGrid", found["RayGrid, 2 actors"], most=1.0),
    ]


def by_flower(rounds: int) -> None:
    """Print the milliseconds a message of Flower's own simulation."""
    from flwr.simulation import run_simulation

    found: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        while len(list(grid.get_node_ids())) < NODES:
            time.sleep(0.1)
        found.append(measure(grid, rounds))

    run_simulation(server, app, NODES, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    print(found[0])


def measure(grid: Grid, rounds: int) -> float:
    """Return milliseconds a message, without the first round, which starts processes."""
    send(grid)
    start = time.perf_counter()
    for _ in range(rounds):
        send(grid)
    return (time.perf_counter() - start) * 1e3 / (rounds * NODES)


def send(grid: Grid) -> None:
    empty = RecordDict({"config": ConfigRecord()})
    messages = [Message(empty, node, MessageType.TRAIN) for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    failed = [reply for reply in replies if reply.has_error()]
    if len(replies) < len(messages) or failed:
        raise HeteroFLError(f"{len(messages) - len(replies)} messages had no reply, {len(failed)} failed")


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    del context
    return Message(message.content, reply_to=message)
