"""Basic modules: errors, atomic files, groups of options."""
