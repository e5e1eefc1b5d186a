"""Entry points: the apps for ``flwr run``, and the command ``heterofl``."""
