"""Foundations that every other package may import: errors, atomic files, groups of options."""
