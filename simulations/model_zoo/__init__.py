"""Models that nobody wrote for this package, and what must hold of each when it is sliced."""
