"""``crossdistill cache``: embed the training clips with the teachers once. ``crossdistill cache verify`` checks it."""

from __future__ import annotations

from collections.abc import Sequence

from crossdistill.commands.train import parse_beside_training
from crossdistill.recipes.command_options import CacheOptions, VerifyOptions
from crossdistill.utils.command_line import parse_options

DESCRIPTION = """Embed the training clips with the teachers once. Training with --teacher-cache then needs neither the
teachers nor their videos. Several teachers see the clips in one pass, and each clip is decoded once. An interrupted
command resumes when it is started again; accelerate launch -m crossdistill cache
(on a CPU: torchrun -m crossdistill cache) divides the work among processes.

The command takes every option of crossdistill train beside its own, so that one command line serves both: teacher,
student, data, seed, precision and workers decide the cache; options such as --lr have no effect on it. crossdistill
cache verify --help explains how to check a cache. For example:

crossdistill cache --teacher rgb_r3d18 --teacher-weights kinetics400 --student flow_r3d18 --data data/ucf101
--augmentations 10 --out caches/r3d18"""


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    if list(arguments[:1]) == ["verify"]:
        options = parse_options(VerifyOptions, arguments[1:], prog=f"{prog} verify")
        from crossdistill.recipes.cache_verification import verify_cache

        verify_cache(options)
        return
    own, config = parse_beside_training(CacheOptions, arguments, prog=prog, description=DESCRIPTION)
    from crossdistill.recipes.cache import estimate_cache, fill_cache

    if own.estimate:
        estimate_cache(config, own)
    else:
        fill_cache(config, own)
