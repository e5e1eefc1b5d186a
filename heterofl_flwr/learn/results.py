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
        Means over all examples of all epochs, as they were seen: before each step, and without the pull of FedProx.
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
    """One evaluation: the number of examples, their mean loss, and how many were right; without examples all 0."""

    examples: int
    loss: float
    correct: int

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.correct / self.examples if self.examples else 0.0
