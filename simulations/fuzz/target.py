"""What is forged by chance, and what becomes of one that is."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OUTCOMES = ("refused", "harmless", "crashed", "changed")


@dataclass(frozen=True, slots=True)
class Target:
    """Something that others send or write, and the kinds of what can be wrong with it."""

    name: str  # for the table
    kinds: Sequence[str]
    trial: Callable[[str, random.Random], str]  # forges one of a kind; returns an outcome, and what is wrong
    refusals: tuple[type[Exception], ...] = ()  # the errors that refuse it

    def outcome(self, kind: str, draw: random.Random) -> str:
        """Return what became of one of a kind."""
        try:
            return self.trial(kind, draw)
        except self.refusals:
            return "refused"
        except Exception as error:  # this is what is looked for
            return f"crashed: {type(error).__name__}: {error}"[:200]
