"""Ways to average LoRA adapters of unequal rank, compared on a text."""
