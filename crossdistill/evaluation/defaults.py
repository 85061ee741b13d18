"""Numbers that options and evaluations share. Nothing is imported here, so that ``--help`` need not wait for torch."""

CLIPS_AT_ONCE = 32
"""Clips in a batch of a forward pass. Another number can change the last bits of the features."""
NUM_BOOTSTRAP_DRAWS = 2000
"""Number of test sets that are drawn for an interval."""
MIN_CLIPS_FOR_CKA = 4
"""Fewest clips for which unbiased linear CKA is defined."""
EXPORTED_SUFFIXES = (".onnx", ".xml", ".pt2", ".pt")
"""Suffixes of files of ``crossdistill export`` that a runtime opens without the student."""
