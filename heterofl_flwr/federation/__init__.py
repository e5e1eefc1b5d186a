"""The federation: what the server knows and decides, between the messages."""
