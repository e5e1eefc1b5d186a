"""Results of any sweep: what configurations reached, and what they spent for it."""
