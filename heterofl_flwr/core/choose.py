"""Which entries of an axis a smaller model keeps.

A chooser sees the length of one part of an axis and how much of it is kept, and nothing else. Axes that are coupled,
such as those of a residual stream, have equal lengths, so every chooser keeps them aligned.
"""

from collections.abc import Callable, Sequence

Choose = Callable[[int, int], Sequence[int] | None]
"""From (full, kept) to the kept positions, ascending; ``None`` stands for the first ``kept``."""


def prefix(full: int, kept: int) -> None:
    """Keep the first ``kept`` of ``full`` entries: HeteroFL's choice (section 3.1)."""
