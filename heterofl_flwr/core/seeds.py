"""Random numbers as pure functions of what they are for.

Nothing in this package reads or writes a global random state. A draw is named by its seed and its purpose, for
example ``generator(seed, "level", server_round, partition)``, so it is the same whatever else was drawn before it.
"""

import hashlib
import random


def derive(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed that depends on all arguments, the same on every platform and Python version."""
    # The quotes of a text tell ("a", "b") from ("a/b",), and 1 from "1".
    text = repr([part if isinstance(part, str) else int(part) for part in (seed, *purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: int | str) -> random.Random:
    """Return a fresh generator for one purpose."""
    return random.Random(derive(seed, *purpose))
