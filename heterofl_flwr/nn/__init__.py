"""Models, layers, losses and functions on models, in plain PyTorch without flwr."""

from heterofl_flwr.nn.buffers import renew_spectral_norms
from heterofl_flwr.nn.depth import shallow
from heterofl_flwr.nn.exits import Exits, with_exits
from heterofl_flwr.nn.layers import Scaler
from heterofl_flwr.nn.loss import mask_logits, masked_cross_entropy, perplexity
from heterofl_flwr.nn.measure_moments import collect_moments
from heterofl_flwr.nn.models import CNN, PAPER, build_model
from heterofl_flwr.nn.preresnet import PreResNet
from heterofl_flwr.nn.profile import profile
from heterofl_flwr.nn.static_norm import with_static_norm
from heterofl_flwr.nn.transformer import Transformer

__all__ = [
    "CNN",
    "PAPER",
    "Exits",
    "PreResNet",
    "Scaler",
    "Transformer",
    "build_model",
    "collect_moments",
    "mask_logits",
    "masked_cross_entropy",
    "perplexity",
    "profile",
    "renew_spectral_norms",
    "shallow",
    "with_exits",
    "with_static_norm",
]
