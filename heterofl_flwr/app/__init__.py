"""What is started from outside: Flower's ServerApp and ClientApp, the launcher and the command ``heterofl``."""
