"""One file for each dataset: its lists and file names."""
