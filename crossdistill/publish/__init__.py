"""Students and teacher caches on the Hugging Face hub: their files and their model card."""
