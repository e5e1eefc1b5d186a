"""The sides of the benchmark of whole rounds, and what is measured on them."""
