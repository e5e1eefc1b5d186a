"""Run a Flower app in this process: it owns the server, the grid and the exit code, and leaves no process behind."""
