"""Stages: federated methods such as FedDyn, one in each file.

The client half of a stage (``client_stage``) changes a client's loss or update. The server half (``server_stage``)
changes updates before they are averaged, or the model after the mean.
"""
