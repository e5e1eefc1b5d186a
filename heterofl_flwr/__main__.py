"""``python -m heterofl_flwr`` is the command ``heterofl``."""

import sys

from heterofl_flwr.app.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
