"""Memory and disk of a SuperLink while many nodes answer at once, against the rule for its memory.

A SuperLink starts on this machine. Its nodes are threads of this process that use the SuperNode's client. Each pulls a
message and waits for the others; then all push replies of the same size and different content.

Memory is the peak resident memory of ``flower-superlink`` and of ``flwr-serverapp``, which does nothing else. Disk is
the largest sum of the database and its ``-wal`` file, and time is that of the exchange in the ServerApp. Replies are
lost if the SuperLink answers with an error, for example because another request has locked the database.
"""

import argparse
import json
import logging
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier, Event

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import write_atomic
from heterofl_flwr.transport.compat import set_metadata
from heterofl_flwr.transport.exchange import exchange
from simulations import flower_internals as flower
from simulations.bench.measure import Goal, read_bytes
from simulations.processes import POLL, Processes, free_port

RULES = {False: (150, 3), True: (200, 4)}
"""Without and with a file as database: MB of an idle SuperLink, and MB for each MB of replies that arrive at once."""

TIMEOUT = 150.0
"""Seconds until missing replies are lost."""

APP = """project = {{name = "bench", version = "1"}}
[tool.flwr.app]
publisher = "bench"
components = {{serverapp = "app:server", clientapp = "app:client"}}
config = {{nodes = {nodes}, size = {size}, result = "{result}"}}
"""
MODULE = f"import {__name__} as module\n\nclient = module.client\nserver = module.server\n"
CONNECTION = '[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
client, server = ClientApp(), ServerApp()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 50, 100], help="nodes that answer at once")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0.5, 2.0, 8.0], help="MB of each message")
    parser.add_argument("--file", action="store_true", help="the database is a file; else it is in memory")


def run(options: argparse.Namespace) -> list[Goal]:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    row = "{:>5}{:>9}{:>11}{:>8}{:>11}{:>8}{:>8}{:>6}"
    print(row.format("nodes", "MB each", "SuperLink", "rule", "ServerApp", "disk", "s", "lost"))
    ratios, lost = [], 0
    for nodes, size in ((nodes, size) for size in options.megabytes for nodes in options.nodes):
        with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
            peaks, replies, seconds = measure(processes, nodes, int(size * 1e6), in_file=options.file)
        superlink, app, disk = (peak / 1e6 for peak in peaks)
        base, factor = RULES[options.file]
        rule = base + factor * nodes * size
        ratios.append(superlink / rule)
        lost += nodes - replies
        numbers = (f"{value:.0f}" for value in (superlink, rule, app, disk, seconds))
        print(row.format(nodes, f"{size:g}", *numbers, nodes - replies), flush=True)
    least, most = min(ratios), max(ratios)
    return [
        Goal("memory in times the rule, least", least, least=2 / 3),
        Goal("most", most, most=4 / 3),
        Goal("lost replies", lost, most=0),
    ]


def measure(processes: Processes, nodes: int, size: int, *, in_file: bool) -> tuple[list[float], int, float]:
    """Return bytes of the SuperLink, the ServerApp and the disk, and replies and seconds of an exchange."""
    folder, port, over, together = processes.folder, free_port(), Event(), Barrier(nodes)
    result, peaks = folder / "result", [0.0, 0.0, 0.0]
    (folder / "app").mkdir()
    project = APP.format(nodes=nodes, size=size, result=result)
    write_atomic(folder / "app" / "pyproject.toml", project.encode())
    write_atomic(folder / "app" / "app.py", MODULE.encode())
    write_atomic(processes.home / "config.toml", CONNECTION.format(port=port).encode())
    database = ["--database=superlink.db"] if in_file else []
    words = ["flower-superlink", "--insecure", "--host=127.0.0.1", f"--port={port}", *database]
    superlink = processes.popen([*words, "--disable-runtime-dependency-installation"], "superlink", folder)
    processes.wait_for_superlink(superlink, port)

    def ends() -> bool:
        apps = [0]
        for number in processes.numbers_of("flwr-serverapp"):
            with suppress(OSError):  # it has ended
                apps.append(read_bytes("VmHWM", number))
        disk = sum(path.stat().st_size for path in folder.glob("superlink.db*"))
        peaks[:] = map(max, peaks, (read_bytes("VmHWM", superlink.pid), max(apps), disk))
        return result.exists()

    with ThreadPoolExecutor(nodes) as pool:
        try:
            for number in range(nodes):
                pool.submit(answer, f"127.0.0.1:{port}", noise(number + 1, size), together, over)
            if processes.popen(["flwr", "run", "app", "bench"], "run", folder).wait():
                raise ConfigError(f"flwr run failed:\n{processes.log('run')}")
            processes.wait_for(ends, "the end of the run", 2 * TIMEOUT)
        finally:
            over.set()
            together.abort()
    return peaks, *json.loads(result.read_bytes())


def answer(address: str, content: RecordDict, together: Barrier, over: Event) -> None:
    """Pull a message as a node, and push a reply when all nodes have pulled theirs."""
    with flower.connect_to_superlink(address) as connection:  # which logs errors
        _, receive, send, _, _, pull, push, confirm = connection
        try:
            while (received := receive()) is None:
                if over.wait(POLL):
                    return
            message, tree = received
            names = [part.object_id for part in flower.iterate_object_tree(tree)]
            flower.pull_objects(names, partial(pull, message.metadata.run_id))
            confirm(message.metadata.run_id, message.metadata.message_id)
        finally:
            together.wait(TIMEOUT)
        reply = Message(content, reply_to=message)
        set_metadata(reply, message_id=reply.object_id)
        objects = flower.get_all_nested_objects(reply)
        missing, session = send(reply, flower.get_object_tree(reply), 1.0)
        contents = ((name, objects[name].deflate()) for name in missing)
        flower.push_object_contents_from_iterable(contents, partial(push, message.metadata.run_id, session))
        over.wait()


def noise(seed: int, size: int) -> RecordDict:
    """Return random bytes: a SuperLink stores equal contents once."""
    values = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return RecordDict({"arrays": ArrayRecord({"noise": Array(values)})})


@server.main()
def send_and_read(grid: Grid, context: Context) -> None:
    config = context.run_config
    while len(names := list(grid.get_node_ids())) < int(config["nodes"]):
        time.sleep(POLL)
    content, began = noise(0, int(config["size"])), time.monotonic()
    replies = exchange(grid, [Message(content, name, MessageType.TRAIN) for name in names], timeout=TIMEOUT)
    good = sum(not reply.has_error() for reply in replies)
    write_atomic(Path(str(config["result"])), json.dumps([good, time.monotonic() - began]).encode())
