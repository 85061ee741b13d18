"""The pipeline that turns source videos into a prepared dataset.

One video goes through it in these steps:

1. A module of ``data_prep.datasets`` reads the official lists and describes the video as a ``SourceVideo``: its name,
   its class, its splits, and for each modality the file or folder that holds it.
2. ``prepare`` makes a ``Task`` of it (``tasks``): a ``Job`` that lists the streams to write, and one key for each
   stream. A key holds all that decides the content of the stream: the source file and the options.
3. ``resume`` compares the keys with the journals of earlier runs. It removes finished streams from the job. A task
   without any stream left is done.
4. ``executor`` runs the remaining jobs in parallel, in threads of this machine or on a Dask or Ray cluster.
5. Each worker sends its job as JSON to a child process of its own (``jobs``, ``guard``). A child that crashes or that
   exceeds the time limit is killed and costs one video, not the run.
6. In the child, ``transcode`` reads the source once and decides whether it is intact, damaged but usable
   (``repaired``) or unusable (``skipped``). ``readers`` yields its frames at the stored size (``data_prep.frames``).
   Every stream takes each frame: ``rgb`` and recorded ``depth`` are copied; ``data_prep.flow`` and ``data_prep.depth``
   estimate the others. A stream is written to a temporary file, which is renamed when it is complete.
7. The worker receives an ``Outcome`` (``ok``, ``repaired`` or ``skipped``, the reason, the streams). The main process
   appends it to the journal (``journal``).
8. When all jobs are done, ``prepare`` writes the manifest, in the order of the dataset's list. ``summary`` prints how
   many videos have which status, and the command fails if too many are unusable.

With ``--shard I/N``, a run does this for every N-th video (``shards``). With ``--dry-run``, it prepares three videos
into a temporary folder and extrapolates the time and the size (``dry_run``). All options are in ``options``.
"""
