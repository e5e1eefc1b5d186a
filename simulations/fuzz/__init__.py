"""Fuzzing: hostile replies, texts and files, made from valid ones at random, and what must come of them."""
