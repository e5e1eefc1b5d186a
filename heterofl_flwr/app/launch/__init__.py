"""Run a Flower app on this machine, by itself and to its true end, and leave no process behind.

``flwr run`` returns 0 when the app fails, and starts a SuperLink that stays, with the environment of whoever came
first. Here each run has its own SuperLink, home folder and port, and its end is known for what it is.
"""
