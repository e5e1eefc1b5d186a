"""Where the authors' code and what is right differ: one setting for each such place."""

from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from heterofl_flwr.errors import ConfigError

Variant = Literal["paper", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """One variant for each quirk that the published numbers contain.

    ``paper`` is what produced the published numbers, ``fixed`` is what is right. ``Fidelity.of("paper")`` and
    ``Fidelity.of("fixed")`` set all of them; any can be set alone: ``Fidelity.of("paper", moments="fixed")``.

    Attributes
    ----------
    encoder_init
        The Transformer's encoder layers start as identical copies (paper) or are drawn one by one (fixed).
    mask_fill
        Logits of classes that a client lacks become 0 and stay in the softmax (paper) or -inf (fixed).
    label_rows
        Classifier rows count by label even where the loss is not masked (paper), or only where it is (fixed).
    extra_rows
        Rows beyond the classes, such as the embedding of [MASK], are never averaged (paper) or count for every
        holder (fixed).
    moments
        Static batch norm averages the moments of batches (paper) or pools them over all samples (fixed).
    shards
        A client that draws one class twice in a non-IID deal gets one shard of it (paper) or both (fixed).
    perplexity
        The mean over chunks of exp(loss) (paper) or exp of the mean loss over all tokens (fixed).
    """

    encoder_init: Variant = "paper"
    mask_fill: Variant = "paper"
    label_rows: Variant = "paper"
    extra_rows: Variant = "paper"
    moments: Variant = "paper"
    shards: Variant = "paper"
    perplexity: Variant = "paper"

    def __post_init__(self) -> None:
        """Check that each value is ``paper`` or ``fixed``."""
        for name, value in asdict(self).items():
            _check_variant(f"fidelity.{name}", value)

    @classmethod
    def of(cls, default: Variant, **single: Variant) -> "Fidelity":
        """Return ``default`` for every quirk except those named in ``single``."""
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(single) - set(names))
        if unknown:
            raise ConfigError(f"fidelity has no setting {', '.join(unknown)}; it has {', '.join(names)}")
        _check_variant("fidelity", default)
        return cls(**{**dict.fromkeys(names, default), **single})


def _check_variant(name: str, value: object) -> None:
    if value not in get_args(Variant):
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(get_args(Variant))}")
