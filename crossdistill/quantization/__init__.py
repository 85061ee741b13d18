"""Quantised students: ``quantize.py`` quantises an encoder.

``layers.py`` and ``ranges.py`` define the layers, ``integers.py`` the integer arithmetic in eval mode, and
``stored.py`` the form in which weights are saved.
"""
