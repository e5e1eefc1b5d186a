"""A ClientApp that returns what it gets."""

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    if context.run_config["fault"] == "client":
        raise RuntimeError("the client's own fault")
    if context.run_config["fault"] == "memory":
        raise MemoryError("no room")
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
