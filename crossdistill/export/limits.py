"""How far an exported file may be from PyTorch. Nothing is imported here: ``--help`` need not wait for torch."""

MIN_COSINE = 0.99
"""Smallest cosine similarity between the exported and the PyTorch embedding of a clip."""
