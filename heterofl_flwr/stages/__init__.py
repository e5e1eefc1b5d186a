"""Stages: what happens to a client's update between its training and the new model, one file each.

``stage`` says what a stage is, ``chain`` puts several around the mean that sums the updates of a round.
"""
