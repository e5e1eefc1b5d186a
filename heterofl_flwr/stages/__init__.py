"""Stages: federated methods such as FedDyn, one in each file. A stage changes training on clients, averaging, or both.

A stage has two halves. The client half (``client_stage``) runs around a client's training. The server half
(``server_stage``) runs before and after the mean of a round, in ``chain``.
"""
