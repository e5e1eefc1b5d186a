"""Data sets and models that experiments in ``conf/`` name, such as ``heterofl_flwr.experiments.lora:load``."""
