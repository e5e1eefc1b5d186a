"""Old name of ``heterofl_flwr.experiments.small_mnist``, which stored runs have in ``data.name``."""

from heterofl_flwr.experiments.small_mnist import load as load, with_test_images as with_test_images
