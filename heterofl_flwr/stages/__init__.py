"""Stages: the two halves of a federated method around training and averaging, one method in each file.

``server_stage`` and ``client_stage`` define the halves; ``chain`` runs server halves before and after the mean of a
round.
"""
