"""Messages between server and clients: keys, arrays, ways to send messages, and all uses of Flower's private parts."""
