"""Predictions of a student for video files and cameras."""
