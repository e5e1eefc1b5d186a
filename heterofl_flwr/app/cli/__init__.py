"""The subcommands of ``heterofl``, one module each: ``add(subparsers)`` and ``run(args) -> exit code``."""
