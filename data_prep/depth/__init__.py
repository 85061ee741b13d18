"""Ways to estimate depth."""
