"""What has nothing to do with video: files, consoles, processes."""
