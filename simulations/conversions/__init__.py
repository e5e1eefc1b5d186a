"""Flower's own examples, converted to HeteroFL by small edits; none of their code is here."""
