"""Labels: let all rows of the classifier count in the mean, and not those of the classes that a client names."""

from dataclasses import replace

from heterofl_flwr.stages.stage import RoundContext, Stage, Update


class AllRows(Stage):
    """Let all rows of the classifier count, whatever classes a client names (``labels="none"``)."""

    reads_replies = False

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Drop the classes."""
        return replace(update, labels=None)
