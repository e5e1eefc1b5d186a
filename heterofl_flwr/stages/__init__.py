"""Stages: federated methods such as FedDyn, one in each file.

The client half of a stage (``client_stage``) runs around a client's training. The server half (``server_stage``) runs
before and after the mean of a round.
"""
