"""A ClientApp whose query actions do one odd thing each."""

import os
import sys
import time

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
not_an_app = 3
answered = 0  # a cache of this module, as it were


def reply(message, **values):
    return Message(RecordDict({"config": ConfigRecord(values)}), reply_to=message)


@app.train()
def train(message, context):
    """Add one, and this node's partition number, to the weights."""
    weights = message.content["arrays"]["w"].numpy() + 1 + context.node_config["partition-id"]
    metrics = MetricRecord({"num-examples": 1 + context.node_config["partition-id"]})
    return Message(RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    """Report the mean weight."""
    mean = float(message.content["arrays"]["w"].numpy().mean())
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "mean": mean})}), reply_to=message)


@app.query("configs")
def configs(message, context):
    return Message(
        RecordDict({"node": ConfigRecord(context.node_config), "run": ConfigRecord(context.run_config)}),
        reply_to=message,
    )


@app.query("process")
def process(message, context):
    global answered
    answered += 1
    time.sleep(message.content["config"].get("seconds", 0.0))
    seen = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    return reply(message, pid=os.getpid(), answered=answered, **seen)


@app.query("sleep")
def sleep(message, context):
    began = time.monotonic()
    time.sleep(message.content["config"]["seconds"])
    return reply(message, began=began)


@app.query("count")
def count(message, context):
    """Count this node's messages in its state; fail where told to, after counting."""
    counts = context.state.config_records.setdefault("counts", ConfigRecord({"seen": []}))
    counts["seen"].append(1)
    if message.content["config"].get("fail", False):
        raise RuntimeError("counted, then failed")
    return reply(message, seen=len(counts["seen"]), pid=os.getpid())


@app.query("hoard")
def hoard(message, context):
    """Keep a large array in the state, and return it as it was before."""
    before = context.state.get("hoard", ArrayRecord())
    context.state["hoard"] = message.content["arrays"]
    return Message(RecordDict({"before": before}), reply_to=message)


@app.query("spoil")
def spoil(message, context):
    """Empty the records that came, as ``to_torch_state_dict(keep_input=False)`` does."""
    size = len(message.content["config"]["a"])
    message.content["config"]["a"].append(2)
    message.content["config"].clear()
    message.content.clear()
    context.node_config.clear()
    return reply(message, size=size)


@app.query("fail")
def fail(message, context):
    raise ZeroDivisionError(f"as partition {context.node_config['partition-id']} was told")


@app.query("leave")
def leave(message, context):
    sys.exit(3)


@app.query("die")
def die(message, context):
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os._exit(7)


@app.query("silent")
def silent(message, context):
    return None


@app.query("astray")
def astray(message, context):
    return Message(RecordDict(), message.metadata.dst_node_id, "query")
