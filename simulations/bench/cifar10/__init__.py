"""The sides of the benchmark of CIFAR10 on a GPU, and what is measured on them."""
