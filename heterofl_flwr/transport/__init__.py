"""Messages between server and clients: their keys, their arrays, how they are sent, and what is private to Flower."""
