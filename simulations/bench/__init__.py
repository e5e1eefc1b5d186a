"""One module for each benchmark; ``simulations.bench`` runs them."""
