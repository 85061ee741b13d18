"""``crossdistill report``: one self-contained HTML page about a run, or a comparison of several runs.

``write`` checks the options and writes the file. ``record`` reads a run folder, ``networks`` loads its networks,
``embeddings`` embeds the dataset, ``cost`` measures the networks, and ``run_data`` collects all of it.

``run_page`` and ``comparison_page`` make the sections. ``facts``, ``curves``, ``results``, ``tables``, ``analysis`` and
``gallery`` (with the images of ``frames``) prepare the content, ``charts`` and ``class_charts`` draw with the elements
of ``svg``, and ``page`` renders the templates.
"""
