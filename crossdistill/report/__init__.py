"""``crossdistill report``: one self-contained HTML page about a run, or a comparison of several runs.

=====================  ==================================================================
``write``              options, checks, the file
``record``             reads a run folder
``networks``           loads the run's networks
``embeddings``         embeds the dataset with a network and evaluates it
``cost``               parameters, multiply-adds and time of a network
``run_data``           all of the above for one run
``run_page``           the page of one run
``comparison_page``    the page of several runs
``facts``, ``curves``  configuration and training curves of a run
``results``            accuracies as tables
``analysis``           confusion, agreement with the teacher, t-SNE
``gallery``            nearest neighbours as images; ``frames`` draws frames of any stream
``charts``             line, interval and cost charts; ``class_charts``: charts with one entry per class
``svg``, ``page``      elements, scales and numbers; sections, templates and the HTML file
=====================  ==================================================================
"""
