"""One module per dataset: finds the source videos and reads the official lists."""
