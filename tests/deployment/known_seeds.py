"""Makes the seeds of secure sums known where it is imported, so that a run with them can be replayed."""

import secrets

from heterofl_flwr.federation.callbacks import Progress, RoundCallback

secrets.randbits = lambda k: 0


class KnownSeeds(RoundCallback):
    """A callback that ``run.callbacks`` can name, for this import."""

    def on_round_end(self, progress: Progress) -> bool:
        """Do nothing."""
        return False
