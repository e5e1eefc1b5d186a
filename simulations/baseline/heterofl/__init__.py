"""heterofl: A Flower Baseline."""
