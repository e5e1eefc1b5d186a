"""The paper's models and what they are made of, in plain PyTorch. Imports no flwr."""

from heterofl_flwr.nn.depth import shallow
from heterofl_flwr.nn.exits import Exits, with_exits
from heterofl_flwr.nn.layers import NORMS, Scaler, make_norm
from heterofl_flwr.nn.loss import class_mask, mask_logits, masked_cross_entropy, perplexity
from heterofl_flwr.nn.models import CNN, MODELS, PAPER, build_model
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.preresnet import PreResNet
from heterofl_flwr.nn.profile import Profile, profile
from heterofl_flwr.nn.static_norm import collect_moments, with_static_norm
from heterofl_flwr.nn.transformer import Transformer

__all__ = [
    "CNN",
    "MODELS",
    "NORMS",
    "PAPER",
    "Exits",
    "Moments",
    "PreResNet",
    "Profile",
    "Scaler",
    "Transformer",
    "build_model",
    "class_mask",
    "collect_moments",
    "make_norm",
    "mask_logits",
    "masked_cross_entropy",
    "perplexity",
    "profile",
    "shallow",
    "with_exits",
    "with_static_norm",
]
