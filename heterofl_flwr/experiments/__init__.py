"""Data sets and models for experiments in ``conf/``, which name them, as in ``heterofl_flwr.experiments.lora:load``."""
