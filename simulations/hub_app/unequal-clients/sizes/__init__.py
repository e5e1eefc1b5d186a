"""One image classifier over clients of unequal size."""
