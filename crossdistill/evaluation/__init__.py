"""What a student is worth: protocols on features, each in a file of its own."""
