"""Where the authors' code and what is right differ: one setting for each such place."""

from typing import Literal

from heterofl_flwr.common.options import group, specs

Variant = Literal["paper", "fixed"]


@group
class Fidelity:
    """One variant for each quirk that the published numbers contain.

    ``paper`` is what produced the published numbers, ``fixed`` is what is right. ``Fidelity.of("paper")`` and
    ``Fidelity.of("fixed")`` set all of them; any can be set alone: ``Fidelity.of("paper", moments="fixed")``.
    """

    encoder_init: Variant = "paper"
    """the Transformer's encoder layers start as identical copies (paper) or are drawn one by one (fixed)"""
    mask_fill: Variant = "paper"
    """logits of classes that a client lacks become 0 and stay in the softmax (paper) or -inf (fixed)"""
    label_rows: Variant = "paper"
    """classifier rows count by label even where the loss is not masked (paper), or only where it is (fixed)"""
    extra_rows: Variant = "paper"
    """rows beyond the classes, such as the embedding of [MASK], are never averaged (paper) or count for every holder
    (fixed)
    """
    moments: Variant = "paper"
    """static batch norm averages the moments of batches (paper) or pools them over all samples (fixed)"""
    shards: Variant = "paper"
    """a client that draws one class twice in a non-IID deal gets one shard of it (paper) or both (fixed)"""
    perplexity: Variant = "paper"
    """the mean over chunks of exp(loss) (paper) or exp of the mean loss over all tokens (fixed)"""

    @classmethod
    def of(cls, default: Variant, **single: Variant) -> "Fidelity":
        """Return ``default`` for every quirk except those named in ``single``."""
        return cls(**{**dict.fromkeys(specs(cls), default), **single})
