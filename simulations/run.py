"""The name of ``simulations.sweep`` in the commands that ``results/`` records."""

import sys

from simulations.sweep.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
