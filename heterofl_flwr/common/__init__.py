"""Basic modules that all other packages may import: errors, atomic files, groups of options."""
