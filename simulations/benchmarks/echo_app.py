"""A ClientApp that sends back what it gets."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    del context
    return Message(message.content, reply_to=message)
