"""What says that clients cannot be trained together."""

from heterofl_flwr.errors import HeteroFLError


class UnfitError(HeteroFLError):
    """These models cannot be computed together this way; alone they can."""
