"""Entry points: Flower's ServerApp and ClientApp, the launcher and the command ``heterofl``."""
