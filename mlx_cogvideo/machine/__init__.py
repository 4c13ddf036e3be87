"""Checks whether a machine computes right, and estimates how fast it is."""
