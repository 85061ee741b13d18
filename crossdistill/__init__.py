"""Compress any trained visual encoder into any other, across modalities, without labels."""
