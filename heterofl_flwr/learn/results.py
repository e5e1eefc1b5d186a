"""What training and evaluation report."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TrainResult:
    """One client's training.

    Attributes
    ----------
    examples
        Number of the client's examples.
    loss, accuracy
        Means over all examples (words, of a text) of all epochs, as they were seen: before each step, and without the
        pull of FedProx.
    steps
        Steps of the optimiser.
    seconds
        Time that it took; not part of equality.
    """

    examples: int
    loss: float
    accuracy: float
    steps: int
    seconds: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """One evaluation.

    Attributes
    ----------
    examples
        Number of examples, or of words of a text; with none, all else is 0.
    loss
        Their mean loss.
    correct
        How many were right.
    perplexity
        Of a text; None for other data.
    """

    examples: int
    loss: float
    correct: int
    perplexity: float | None = None

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.correct / self.examples if self.examples else 0.0

    def metrics(self, kind: str) -> dict[str, float]:
        """Return accuracy and loss, and the perplexity of a text, each with its kind: ``global-accuracy``."""
        found = {"accuracy": self.accuracy, "loss": self.loss}
        if self.perplexity is not None:
            found["perplexity"] = self.perplexity
        return {f"{kind}-{name}": value for name, value in found.items()}
