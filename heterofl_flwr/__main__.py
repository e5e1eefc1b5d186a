"""``python -m heterofl_flwr`` is the command ``heterofl``."""

import sys

if not sys.flags.safe_path:  # the current folder, first: it may be a stranger's, with a module such as argparse.py
    sys.path.pop(0)

from heterofl_flwr.app.main import main

if __name__ == "__main__":
    sys.exit(main())
