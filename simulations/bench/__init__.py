"""Benchmarks, one module for each; ``python -m simulations.bench`` runs them."""
