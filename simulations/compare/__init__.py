"""Methods beside one another: what each reaches on one split, and for how many rounds, bytes and multiplications."""
