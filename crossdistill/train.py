"""``train.py``, ``crossdistill train``, ``accelerate launch -m crossdistill.train``: one run from start to table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.environment import require_matched_torch
from crossdistill.errors import friendly_errors

if __name__ == "__main__":  # before what follows imports a torchvision that perhaps cannot be
    friendly_errors(require_matched_torch)()

from accelerate import Accelerator

from crossdistill import build
from crossdistill.config import RunConfig, parse
from crossdistill.console import print_table
from crossdistill.data.dataset import PairedClips
from crossdistill.data.manifest import Manifest
from crossdistill.distiller import FrozenTeacher, Task
from crossdistill.distributed import decide_on_first, use_all_cores
from crossdistill.encoders import Encoder
from crossdistill.engine import train
from crossdistill.evaluation.evaluate import Evaluation, evaluate_encoder
from crossdistill.files import write_text_atomically
from crossdistill.run_folder import claim, release
from crossdistill.runner import Execution
from crossdistill.student import find_student, save_student
from crossdistill.supervised import SupervisedTask
from crossdistill.teacher_cache import TeacherCache

RESULTS_NAME = "results.json"
# A teacher that has gone less than this share of the way from chance to perfect gets a warning.
WEAK_TEACHER_SHARE = 0.1
TABLE_PROTOCOLS = {"1-nn": "1-NN", "linear": "linear"}


@dataclass(frozen=True)
class Run:
    """What every step of one run needs."""

    config: RunConfig
    manifests: list[Manifest]
    folder: Path
    accelerator: Accelerator
    cache: TeacherCache | None = None
    """In place of a teacher that runs."""


@friendly_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    require_matched_torch()
    run(parse(list(sys.argv[1:] if arguments is None else arguments)))


def run(config: RunConfig, accelerator: Accelerator | None = None) -> Path:
    """Train and evaluate as configured.

    Args:
        config: See ``crossdistill.config``.
        accelerator: Made here if None.

    Returns:
        The run's folder: ``student/``, ``results.json``, ``metrics.jsonl``, ``checkpoints/``, ``config.json``.
    """
    cache, config = build.open_teacher_cache(config)
    build.check_pair(config, cache)
    if accelerator is None:
        accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=config.optimization.accumulate)
    use_all_cores(accelerator)
    manifests = build.open_datasets(config, accelerator)
    folder = decide_on_first(accelerator, lambda: build.run_folder(config))
    decide_on_first(accelerator, lambda: claim(folder, build.identity(config), resume=config.machine.resume))
    this_run = Run(config, manifests, folder, accelerator, cache)
    try:
        if config.pair.supervised:
            _learn_from_labels(this_run)
        else:
            _learn_from_teacher(this_run)
    finally:
        if accelerator.is_main_process:
            release(folder)  # a folder with work in it stays
    return folder


def _learn_from_labels(run: Run) -> None:
    student = build.create_student(run.config)
    build.announce(run.accelerator, f"{student.name} learns from labels; the run is kept in {run.folder}")
    dataset = build.training_set(
        run.config, run.manifests, student_view=student.view, teacher_view=None, accelerator=run.accelerator
    )
    num_classes = len(run.manifests[0].classes)
    task = build.create_supervised(run.config, student=student, num_classes=num_classes, accelerator=run.accelerator)
    _train(run, task, task.execution, student, dataset, facts={"supervised": True})
    _evaluate_all(run, {"student, supervised": (student, task.execution)})


def _learn_from_teacher(run: Run) -> None:
    weights = _teacher_weights(run) if run.cache is None else str(run.cache.folder)
    student = build.create_student(run.config)
    teacher = build.create_teacher(run.config, weights, student.view) if run.cache is None else run.cache
    name, view = run.config.pair.teacher, teacher.teacher_view if isinstance(teacher, TeacherCache) else teacher.view
    build.announce(run.accelerator, f"{student.name} learns from {name} ({weights}); the run is kept in {run.folder}")
    dataset = build.training_set(
        run.config, run.manifests, student_view=student.view, teacher_view=view, accelerator=run.accelerator
    )
    if run.cache is not None:
        dataset = build.replay_cached_clips(run.config, run.cache, dataset)
    distiller = build.create_distiller(run.config, student=student, teacher=teacher, accelerator=run.accelerator)
    facts = {
        "supervised": False,
        "teacher": distiller.teacher.encoder.name,
        "teacher_weights_sha256": distiller.teacher.identity[1],
        "objective": list(run.config.objective.objective),
        "adapters": {term.name: term.adapter for term in distiller.terms},
    }
    _train(run, distiller, distiller.execution, student, dataset, facts=facts)
    random_student = build.create_student(run.config, is_fresh=True)
    distiller.execution.place(random_student)  # the same precision for both students
    encoders = {"student, random": (random_student, distiller.execution)}
    if isinstance(distiller.teacher, FrozenTeacher):  # of a cache there is none to evaluate
        encoders = {"teacher": (distiller.teacher.encoder, distiller.teacher.execution), **encoders}
    _evaluate_all(run, {**encoders, "student, distilled": (student, distiller.execution)})


def _teacher_weights(run_: Run) -> str:
    """The given weights; for ``auto`` on toyactions a teacher that is trained first and kept."""
    pair = run_.config.pair
    if pair.teacher_weights != build.AUTO:
        return pair.teacher_weights
    if not build.trains_its_own_teacher(run_.manifests):
        return build.published_teacher_weights(run_.config)
    made = build.teacher_config(run_.config, run_.folder, run_.manifests)
    assert made.machine.out is not None
    out = made.machine.out
    if not decide_on_first(run_.accelerator, lambda: find_student(out) is not None):
        build.create_student(run_.config)  # wrong --student-weights are named before minutes of training
        build.announce(run_.accelerator, f"no weights are known for {pair.teacher}: it is trained with labels first")
        run(made, run_.accelerator)
    return str(made.machine.out)


def _train(
    run: Run, task: Task, execution: Execution, student: Encoder, dataset: PairedClips, *, facts: dict[str, Any]
) -> None:
    """Train to the end and export the student."""
    state = train(
        task,
        dataset,
        build.create_optimizer(run.config, task.trainable),
        plan=build.create_plan(run.config),
        accelerator=run.accelerator,
        folder=run.folder,
        evaluate=_periodic_knn(run, student, execution),
        description=student.name,
    )
    # That of the weights it started from does not belong to what it has become.
    student.classes = task.classes if isinstance(task, SupervisedTask) else None
    facts = {
        **facts,
        "datasets": [manifest.dataset for manifest in run.manifests],
        "num_clips": len(dataset),
        "num_unreadable": len(state.unreadable),
        "steps": state.step,
        "seconds": round(state.seconds, 1),
    }
    decide_on_first(run.accelerator, lambda: save_student(student, run.folder / "student", facts=facts))


def _periodic_knn(run: Run, student: Encoder, execution: Execution) -> Callable[[], dict[str, float]] | None:
    """1-NN of the student on held-out clips, while it trains; None where there are no labels."""
    manifests = build.labelled(run.manifests, run.config.data.split)
    num_clips = run.config.machine.knn_clips
    if not manifests or num_clips == 0:
        return None

    def evaluate() -> dict[str, float]:
        evaluation = evaluate_encoder(
            student,
            manifests[0],
            split=run.config.data.split,
            execution=execution,
            accelerator=run.accelerator,
            protocols=("knn",),
            ks=(1,),
            max_clips=num_clips,
            num_workers=run.config.machine.workers,
            decoder=run.config.data.decoder,
            short_clips=run.config.data.short_clips,
        )
        return {"knn": evaluation.results["1-nn"].top1}

    return evaluate


def _evaluate_all(run: Run, encoders: dict[str, tuple[Encoder, Execution]]) -> None:
    """Evaluate on every labelled dataset; print one table each and keep all numbers in ``results.json``."""
    if not run.config.machine.evaluate:
        return
    results: dict[str, dict[str, Any]] = {}
    for manifest in build.labelled(run.manifests, run.config.data.split):
        evaluations = {
            role: evaluate_encoder(
                encoder,
                manifest,
                split=run.config.data.split,
                execution=execution,
                accelerator=run.accelerator,
                num_workers=run.config.machine.workers,
                decoder=run.config.data.decoder,
                short_clips=run.config.data.short_clips,
                description=role,
            )
            for role, (encoder, execution) in encoders.items()
        }
        results[str(manifest.root)] = {role: evaluation.to_json() for role, evaluation in evaluations.items()}
        if run.accelerator.is_main_process:
            _report(manifest, run.config.data.split, evaluations)
    if run.accelerator.is_main_process:
        write_text_atomically(run.folder / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
        build.announce(run.accelerator, f"numbers: {run.folder / RESULTS_NAME}; student: {run.folder / 'student'}")


def print_comparison(title: str, by_role: dict[str, dict[str, Any]]) -> None:
    """Print one row a network.

    Args:
        title: Above the table.
        by_role: Role to what ``Evaluation.to_json`` gives, as ``results.json`` keeps it for each dataset.
    """
    rows = [
        (role, evaluation["encoder"], *(f"{evaluation['results'][name]['top1']:.1%}" for name in TABLE_PROTOCOLS))
        for role, evaluation in by_role.items()
    ]
    print_table(title, ("", "encoder", *TABLE_PROTOCOLS.values()), rows)


def _report(manifest: Manifest, split: str, evaluations: dict[str, Evaluation]) -> None:
    """Print the table of one dataset, its coverage, and a warning of a weak teacher."""
    by_role = {role: evaluation.to_json() for role, evaluation in evaluations.items()}
    print_comparison(f"{manifest.dataset}, split {split}, top-1", by_role)
    worst = max(evaluations.values(), key=lambda evaluation: len(evaluation.unreadable))
    print(f"{worst.num_test} test clips evaluated, {len(worst.unreadable)} could not be read")
    _warn_of_weak_teacher(evaluations, len(manifest.classes))


def _warn_of_weak_teacher(evaluations: dict[str, Evaluation], num_classes: int) -> None:
    """Say so where the teacher is near chance: its neighbourhoods teach nothing."""
    if "teacher" not in evaluations:
        return
    accuracy, chance = evaluations["teacher"].results["linear"].top1, 1 / num_classes
    if accuracy - chance < WEAK_TEACHER_SHARE * (1 - chance):
        print(
            f"The teacher's linear accuracy ({accuracy:.1%}) is near chance ({chance:.1%}), so there is little to "
            "learn from it: train it longer (--teacher-epochs), at a larger --teacher-size, or choose another teacher."
        )


if __name__ == "__main__":
    main()
