"""A ClientApp whose clients train together, and whose replies show with whom."""

import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp


class Together(ClientApp):
    def train_cohort(self, messages, contexts):
        """Train together; what each client learns depends on the others."""
        faults = [message.content["config"].get("fault", "") for message in messages]
        if "raise" in faults:
            messages[0].content.clear()
            raise ZeroDivisionError("one of them")
        mean = np.mean([weights(message) for message in messages], axis=0, dtype=np.float32)
        return [answer(message, context, contexts, mean) for message, context in zip(messages, contexts, strict=True)]


app = Together()


@app.train()
def train(message, context):
    if message.content["config"].get("fault") == "raise":
        raise ZeroDivisionError("alone too")
    return answer(message, context, [context], weights(message))


@app.query()
def query(message, context):
    return Message(
        RecordDict({"config": ConfigRecord({"pid": os.getpid(), "gpu": os.environ["CUDA_VISIBLE_DEVICES"]})}),
        reply_to=message,
    )


def weights(message):
    return message.content["arrays"]["w"].numpy()


def answer(message, context, contexts, mean):
    """Return the new weights, who trained together, and how often this node has trained."""
    config = message.content["config"]
    if config.get("fault") == "die":
        os._exit(7)
    began = time.monotonic()
    time.sleep(config.get("seconds", 0.0))
    trained = context.state.config_records.setdefault("trained", ConfigRecord({"times": 0}))
    trained["times"] += 1
    if config.get("fault") == "unsendable":
        context.node_config["partition-id"] = lambda: None
    partition = context.node_config["partition-id"]
    new = np.sqrt(mean + weights(message) * np.float32(0.1 + 0.01 * (partition if isinstance(partition, int) else 0)))
    with_ = [other.node_id for other in contexts]
    told = {"with": with_, "times": trained["times"], "pid": os.getpid(), "began": began}
    return Message(
        RecordDict({"arrays": ArrayRecord({"w": Array(new)}), "config": ConfigRecord(told)}), reply_to=message
    )
