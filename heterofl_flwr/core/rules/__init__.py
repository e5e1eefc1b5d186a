"""Slicing rules by layer type; importing this package registers those for torch's own layers."""

from heterofl_flwr.core.rules import attention, plain, recurrent
from heterofl_flwr.core.rules.registry import Rule, find_rule, register, unsupported

__all__ = ["Rule", "attention", "find_rule", "plain", "recurrent", "register", "unsupported"]
