"""Distillation of one student: teachers, heads, terms of the loss, and the task that combines them."""
