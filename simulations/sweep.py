"""``python -m simulations.sweep`` is ``heterofl sweep``."""

import sys

from heterofl_flwr.app.main import main

if __name__ == "__main__":
    raise SystemExit(main(["sweep", *sys.argv[1:]]))
