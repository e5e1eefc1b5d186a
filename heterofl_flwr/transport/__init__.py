"""Messages between server and clients, and all uses of Flower's private names."""
