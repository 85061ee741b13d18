"""Students of few bits."""
