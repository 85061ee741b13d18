"""How far an exported file may be from PyTorch, and where it runs. torch is not imported: ``--help`` needs this."""

from typing import Literal

RuntimeName = Literal["onnxruntime", "openvino", "pytorch", "auto"]

MIN_COSINE = 0.99
"""Smallest cosine similarity between the exported and the PyTorch embedding of a clip.

Convolutions of a quantised student agree to the bit. PyTorch sums linear layers and attention in floating point: a sum
close to the middle of two integers may be rounded up in PyTorch and down in another runtime.
"""
