"""Checks of ``elastic`` on models of torchvision, timm and transformers."""
