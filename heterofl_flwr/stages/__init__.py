"""Stages: the halves of a federated method around training and averaging, one file each.

``server_stage`` and ``client_stage`` define the halves; ``chain`` puts server halves around the mean of a round.
"""
