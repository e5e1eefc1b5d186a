"""Data sets, models and devices that experiments of ``conf/`` name, such as ``heterofl_flwr.experiments.lora:load``."""
