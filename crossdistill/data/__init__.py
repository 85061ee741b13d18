"""Prepared datasets: what is on disk, how clips are read, drawn and batched."""
