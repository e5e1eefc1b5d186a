"""Options of a strategy by their names alone, as tables of tests have them."""

from heterofl_flwr import Averaging, Sampling, Slicing, Training
from heterofl_flwr.common.options import specs

GROUPS = {"slicing": Slicing, "sampling": Sampling, "training": Training, "averaging": Averaging}


def grouped(options):
    """Return a strategy's arguments, with options of ``GROUPS`` in their groups; everything else is as it was."""
    arguments = dict(options)
    for argument, kind in GROUPS.items():
        values = {name: arguments.pop(name) for name in specs(kind) if name in arguments}
        if values:
            arguments[argument] = kind(**values)
    return arguments
