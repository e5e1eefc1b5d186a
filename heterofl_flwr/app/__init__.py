"""Entry points: the ServerApp and ClientApp for ``flwr run``, and the command ``heterofl`` with its subcommands."""
