"""From source files to a prepared dataset."""
