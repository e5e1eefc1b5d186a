"""Strategies for Flower's Message API."""

from heterofl_flwr.transport.compat import warn_if_untested

warn_if_untested()
