"""What a student says of video files and cameras."""
