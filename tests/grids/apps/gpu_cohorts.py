"""``cohort_clients`` where torch finds a GPU, as it does not where tests run."""

import torch
from cohort_clients import app

torch.cuda.is_available = lambda: True
__all__ = ["app"]
