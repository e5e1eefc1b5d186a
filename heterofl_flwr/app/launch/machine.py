"""How Ray's actors share this machine's GPUs where nobody says it."""

import math
from dataclasses import replace

import torch

from heterofl_flwr.app.launch.request import Request


def devices() -> int:
    """Return how many GPUs are visible."""
    return torch.cuda.device_count()


def with_gpus(request: Request) -> Request:
    """Return the request with a GPU for each of Ray's actors; where more actors are asked for, a share of one."""
    share, number = request.share, devices()
    if request.grid != "ray" or request.config["engine.device"] == "cpu" or not number:
        return request
    on_each = math.ceil((share.at_once or number) / number)
    return replace(request, share=replace(share, gpus=math.floor(1e4 / on_each) / 1e4))
