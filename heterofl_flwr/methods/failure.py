"""A round that cannot go on."""

from flwr.serverapp.exception import AggregationError

from heterofl_flwr.errors import HeteroFLError


class RoundError(HeteroFLError, AggregationError):
    """Too few clients are there, or too few answered; Flower ends the run as failed."""
