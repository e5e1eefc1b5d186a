"""Settings for the places where the authors' code differs from the correct behaviour."""

from typing import Literal

from heterofl_flwr.common.options import group, specs

Variant = Literal["paper", "fixed"]


@group
class Fidelity:
    """One setting for each quirk of the authors' code that affects the published numbers.

    ``paper`` reproduces the published numbers, ``fixed`` is the correct behaviour. ``Fidelity.of("paper")`` and
    ``Fidelity.of("fixed")`` set all of them. Each can also be set alone: ``Fidelity.of("paper", moments="fixed")``.
    """

    encoder_init: Variant = "paper"
    """the Transformer's encoder layers start as identical copies (paper) or are initialised one by one (fixed)"""
    mask_fill: Variant = "paper"
    """logits of classes that a client lacks become 0 and stay in the softmax (paper) or -inf (fixed)"""
    label_rows: Variant = "paper"
    """classifier rows are averaged by label even if the loss is not masked (paper), or only if it is masked (fixed)"""
    extra_rows: Variant = "paper"
    """rows beyond the classes, such as the embedding of [MASK], are never averaged (paper) or averaged over every
    holder (fixed)
    """
    moments: Variant = "paper"
    """static batch norm averages the moments of batches (paper) or pools them over all samples (fixed)"""
    shards: Variant = "paper"
    """a client that draws one class twice in a non-IID split gets one shard of it (paper) or both (fixed)"""
    perplexity: Variant = "paper"
    """the mean over chunks of exp(loss) (paper) or exp of the mean loss over all tokens (fixed)"""

    @classmethod
    def of(cls, default: Variant, **single: Variant) -> "Fidelity":
        """Return ``default`` for every quirk except those named in ``single``."""
        return cls(**{**dict.fromkeys(specs(cls), default), **single})
