"""The command ``heterofl``: ``main`` reads its arguments; each subcommand is a function of a module beside it."""
