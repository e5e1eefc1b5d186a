"""The server's side of federated learning, without Flower."""
