"""Answers of bad faith, made from good ones by chance, and what must come of them."""
