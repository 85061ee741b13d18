"""Turns videos as people download them into prepared datasets that train at the decoder's speed."""
