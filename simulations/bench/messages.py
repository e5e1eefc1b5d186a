"""A message there and back: LocalGrid and RayGrid beside Flower's Ray backend."""

import argparse
import json
import subprocess
import sys
import time

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr.grids import LocalGrid, RayGrid
from simulations.bench.measure import print_verdict

NODES = 20
APP = "simulations.bench.messages:app"
MOST_MILLISECONDS = 0.5
MOST_ON_RAY = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=50, help=f"rounds of {NODES} messages")
    parser.add_argument("--ray", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> bool:
    if options.ray:
        print(json.dumps(by_ray(options.rounds)))
        return True
    print(f"{NODES} nodes, {options.rounds} rounds of an empty message to each\n")
    inline = on_grid(LocalGrid(APP, NODES), options.rounds)
    print(f"LocalGrid, in this process   {inline:8.3f} ms a message")
    print(
        f"LocalGrid, 2 processes       {on_grid(LocalGrid(APP, NODES, processes=2), options.rounds):8.3f} ms a message"
    )
    actors = on_grid(RayGrid(APP, NODES, at_once=2), options.rounds)
    print(f"RayGrid, 2 actors            {actors:8.3f} ms a message")
    # In a process of its own: Ray leaves threads and handlers behind.
    command = [sys.executable, "-m", "simulations.bench", "messages", "--ray", "--rounds", str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ray = float(json.loads(done.stdout.splitlines()[-1]))
    print(f"Flower on Ray, 2 actors      {ray:8.3f} ms a message")
    return print_verdict(
        inline < MOST_MILLISECONDS and actors < MOST_ON_RAY,
        f": {inline:.3f} ms in this process (goal: under {MOST_MILLISECONDS}), {actors:.3f} ms on RayGrid (goal: under "
        f"{MOST_ON_RAY:g}); Flower on Ray: {ray / actors:.1f} times as long",
    )


def on_grid(opened: LocalGrid | RayGrid, rounds: int) -> float:
    with opened as grid:
        return measure(grid, rounds)


def by_ray(rounds: int) -> float:
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
    return found[0]


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
        raise RuntimeError(f"{len(messages) - len(replies)} messages had no reply, {len(failed)} failed")


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    del context
    return Message(message.content, reply_to=message)
