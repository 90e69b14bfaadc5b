"""Linen modules: the layers and blocks of SADNet, and the network."""
