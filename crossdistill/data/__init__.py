"""Prepared datasets: their files, and how clips are drawn, decoded, cut and batched."""
