"""``python -m heterofl_flwr`` is the command ``heterofl``."""

import sys

if not sys.flags.safe_path:  # the current folder is first in sys.path, and may have files such as argparse.py
    sys.path.pop(0)

from heterofl_flwr.app.main import main

if __name__ == "__main__":
    raise SystemExit(main())
