"""The command ``heterofl``: ``main`` reads its arguments; each subcommand but sweep is a module beside it."""
