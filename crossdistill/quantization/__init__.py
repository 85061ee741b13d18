"""Quantised students: ``quantize.py`` turns an encoder into one of few bits.

``layers.py`` and ``ranges.py`` hold its layers, ``integers.py`` what they compute outside of training, and
``stored.py`` what a file stores of them.
"""
