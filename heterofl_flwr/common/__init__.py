"""What every other package may import: errors, files written whole, groups of options."""
