"""A proxy teacher: several teachers teach one large encoder, and that one teaches the student.

Zhu et al.: Efficient Universal Perception Encoder (EUPE), 2026, arXiv 2603.22387. Deviations: the objective is the
run's, and the paper's third stage is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crossdistill.recipes.config import AUTO, PairConfig, RunConfig, several
from crossdistill.recipes.teachers import TeacherSource, teacher_sources
from crossdistill.training.run_folder import RunFolder


def without_proxy(pair: PairConfig) -> PairConfig:
    """Return a pair without its proxy and the options of the proxy."""
    return replace(pair, proxy=None, proxy_frames=None, proxy_stride=None, proxy_size=None)


def proxy_stage(config: RunConfig, folder: RunFolder, weights: Sequence[str]) -> RunConfig:
    """Return the configuration of the first stage, in which the proxy learns from all teachers.

    Args:
        config: Configuration of the run.
        folder: Folder of the run. The proxy's is in it.
        weights: Values of ``--teacher-weights``, one for all or one for each teacher.
    """
    pair = replace(
        without_proxy(config.pair),
        student=config.pair.proxy,
        student_frames=config.pair.proxy_frames,
        student_stride=config.pair.proxy_stride,
        student_size=config.pair.proxy_size,
        teacher_weights=tuple(weights),
        student_weights=None,
        bits=None,
        rounds=1,
    )
    # The final table of the run has the proxy and its teachers. Cached teachers have no weights to divide.
    is_sharded = config.machine.teacher_sharding and pair.teacher_cache is None
    machine = replace(config.machine, out=folder.proxy.path, evaluate=False, teacher_sharding=is_sharded)
    return replace(config, pair=pair, machine=machine)


def student_stage(config: RunConfig, weights: str) -> RunConfig:
    """Return the configuration of the second stage, in which the student learns from the proxy alone.

    Args:
        config: Configuration of the run.
        weights: Folder of the trained proxy; ``auto`` before there is one, for checks.
    """
    pair = replace(
        without_proxy(config.pair),
        teacher=several(config.pair.proxy),
        teacher_cache=None,
        teacher_weights=(weights,),
        teacher_frames=several(config.pair.proxy_frames),
        teacher_stride=several(config.pair.proxy_stride),
        teacher_size=several(config.pair.proxy_size),
        rounds=1,
    )
    return replace(config, pair=pair, objective=replace(config.objective, teacher_drop=0.0))


def stages(config: RunConfig, sources: Sequence[TeacherSource]) -> list[tuple[RunConfig, Sequence[TeacherSource]]]:
    """List the trainings of a run with their teachers, for checks: one, or with a proxy two."""
    if config.pair.proxy is None:
        return [(config, sources)]
    first = proxy_stage(config, RunFolder(config.machine.out or Path()), config.pair.teacher_weights)
    second = student_stage(config, AUTO)
    return [(first, sources), (second, teacher_sources(second))]
