"""Evaluation of encoders: embed the clips of a split once, then apply protocols to the features."""
