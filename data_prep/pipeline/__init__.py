"""The pipeline that turns source videos into a prepared dataset.

1. A module of ``data_prep.datasets`` reads the official lists and describes each video as a ``SourceVideo``.
2. ``prepare`` makes a ``Task`` of it (``tasks``): a ``Job`` that lists the streams to write, and a key per stream.
3. ``resume`` compares the keys with the journals of earlier runs and removes finished streams from the job.
4. ``executor`` runs the remaining jobs in parallel. A worker sends its job to a child process of its own (``jobs``,
   ``guard``). A child that crashes or exceeds the time limit is killed and costs one video, not the run.
5. In the child, ``transcode`` reads the source once and decides whether it is intact, damaged but usable (``repaired``)
   or unusable (``skipped``). ``readers`` yields its frames, and every stream takes each frame.
6. The main process appends the ``Outcome`` to the ``journal``, writes the manifest in the order of the list, and prints
   a ``summary``. ``shards`` and ``dry_run`` are the options of that name; ``options`` has all.
"""
