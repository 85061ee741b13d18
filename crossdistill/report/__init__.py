"""``crossdistill report``: what a run is worth, as one HTML page without anything from outside.

``record`` reads a run's folder, ``spaces`` embeds the dataset with its networks, ``cost`` times them, ``sections`` and
``comparison`` turn that into sections of a page, ``charts`` and ``class_charts`` draw, ``page`` writes.
"""
