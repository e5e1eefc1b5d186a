"""Our own ClientApp with one more query: to read the data, so that what is measured begins with it in memory."""

from flwr.app import Context, Message, RecordDict

from heterofl_flwr.app.client_app import app
from heterofl_flwr.app.task import task_of

READY = "query.ready"

__all__ = ["READY", "app"]


@app.query("ready")
def ready_query(message: Message, context: Context) -> Message:
    task_of(context.run_config).part(0, int(context.node_config["num-partitions"]))
    return Message(RecordDict(), reply_to=message)
