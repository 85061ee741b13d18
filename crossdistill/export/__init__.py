"""Export of a trained student to other runtimes: one module per format."""
