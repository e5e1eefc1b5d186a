"""``read_stages``, and imports that register the client stages of this package."""

from heterofl_flwr.stages import (
    clip as clip,  # each of these registers its client half
    compress as compress,
    feddyn as feddyn,
    scaffold as scaffold,
    secure_sum as secure_sum,
)
from heterofl_flwr.stages.client_stage import read_stages as read_stages
