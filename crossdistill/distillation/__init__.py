"""What one student learns from its teachers: teachers, heads, terms, and the task that joins them."""
