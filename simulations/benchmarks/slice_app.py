"""A ClientApp that sends its slice of the model back as it came, and says what it is when asked."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr import messages as wire
from heterofl_flwr.capability import answer_capability

app = ClientApp()


@app.query("capability")
def capability_query(message: Message, context: Context) -> Message:
    return answer_capability(message, context)


@app.train()
def train_message(message: Message, context: Context) -> Message:
    del context
    content = RecordDict({wire.ARRAYS: message.content[wire.ARRAYS], wire.CONFIG: wire.new_config({})})
    content[wire.METRICS] = MetricRecord({wire.NUM_EXAMPLES: 1})
    return Message(content, reply_to=message)
