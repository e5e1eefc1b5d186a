"""The server's side of federated learning without Flower: clients, levels, rounds, evaluation and records."""
