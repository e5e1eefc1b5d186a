"""Options for reproducing or correcting errors in the code of HeteroFL's authors."""

from typing import Literal

from heterofl_flwr.common.options import group, specs

Variant = Literal["paper", "fixed"]


@group
class Fidelity:
    """Options for errors in the code of HeteroFL's authors that affect the published numbers.

    ``paper`` reproduces an error, and ``fixed`` corrects it. ``Fidelity.of("paper")`` sets all options to ``paper``,
    and ``Fidelity.of("paper", moments="fixed")`` corrects one error.
    """

    encoder_init: Variant = "paper"
    """the Transformer's encoder layers start as identical copies (paper) or are initialised independently (fixed)"""
    mask_fill: Variant = "paper"
    """logits of classes that a client lacks become 0 and stay in the softmax (paper) or -inf (fixed)"""
    label_rows: Variant = "paper"
    """a classifier row is averaged only over clients with the row's class: always (paper), or just when the loss is
    masked (fixed)
    """
    extra_rows: Variant = "paper"
    """rows beyond the classes, such as the embedding of [MASK], are averaged only over clients that send no labels
    (paper) or over every holder (fixed)
    """
    moments: Variant = "paper"
    """static batch norm averages the moments of batches (paper) or pools them over all samples (fixed)"""
    shards: Variant = "paper"
    """a client that draws one class twice in a non-IID split gets one shard of this class (paper) or two (fixed)"""
    perplexity: Variant = "paper"
    """perplexity is the mean of exp(loss) over chunks (paper), or exp of the mean loss over all tokens (fixed)"""

    @classmethod
    def of(cls, default: Variant, **single: Variant) -> "Fidelity":
        """Return options that are all ``default``, except those in ``single``."""
        return cls(**{**dict.fromkeys(specs(cls), default), **single})
