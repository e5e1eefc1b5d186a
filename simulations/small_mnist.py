"""The name by which kept runs know their data; new ones name the module of the package."""

from heterofl_flwr.experiments.small_mnist import load as load, with_test_images as with_test_images
