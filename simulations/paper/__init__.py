"""Runs beside the paper: which printed number a run repeats, tables, figures, and the folder of results."""
