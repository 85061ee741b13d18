"""One run, from its configuration to its folder and its table."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossdistill.errors import friendly_errors
from crossdistill.utils.environment import require_matched_torch

if __name__ == "__main__":  # before what follows imports a torchvision that perhaps cannot be
    friendly_errors(require_matched_torch)()

from accelerate import Accelerator

from crossdistill.data.dataset import PairedClips
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import find_student, save_student
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.evaluate import evaluate_encoder
from crossdistill.evaluation.feature_store import FOLDER_NAME
from crossdistill.evaluation.results import Evaluation
from crossdistill.recipes import build
from crossdistill.recipes.config import RunConfig, parse
from crossdistill.training.loop import train
from crossdistill.training.run_folder import claim, release
from crossdistill.training.task import Task
from crossdistill.training.trackers import track_results
from crossdistill.utils.console import print_table
from crossdistill.utils.distributed import create_accelerator, decide_on_first, use_all_cores
from crossdistill.utils.files import write_text_atomically

RESULTS_NAME = "results.json"
# A teacher that has gone less than this share of the way from chance to perfect gets a warning.
WEAK_TEACHER_SHARE = 0.1
# Training clips above which k-means would take minutes and gigabytes at the end of a run.
MAX_CLUSTERED_CLIPS = 100_000
TABLE_PROTOCOLS = {"1-nn": "1-NN", "linear": "linear", "cluster": "cluster"}


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
        config: See ``crossdistill.recipes.config``.
        accelerator: Made here if None.

    Returns:
        The run's folder: ``student/``, ``results.json``, ``metrics.jsonl``, ``checkpoints/``, ``config.json``.
    """
    cache, config = build.open_teacher_cache(config)
    build.check_pair(config, cache)
    if config.pair.rounds > 1:
        build.check_pair(build.later_round(config))
    if accelerator is None:
        accelerator = create_accelerator(accumulate=config.optimization.accumulate)
    if config.pair.rounds > 1:
        return _run_rounds(config, accelerator)
    use_all_cores(accelerator)
    manifests = build.open_datasets(config, accelerator)
    folder = decide_on_first(accelerator, lambda: build.run_folder(config))
    decide_on_first(accelerator, lambda: claim(folder, build.identity(config), resume=config.machine.resume))
    this_run = Run(config, manifests, folder, accelerator, cache)
    try:
        if config.pair.supervised:
            _learn_from_labels(this_run)
        else:
            _learn_from_teachers(this_run)
    finally:
        if accelerator.is_main_process:
            release(folder)  # a folder with work in it stays
    return folder


def _run_rounds(config: RunConfig, accelerator: Accelerator) -> Path:
    """Self-distillation in rounds: the first as configured, then each student taught by the one before.

    Furlanello et al., Born Again Neural Networks, ICML 2018, arXiv 1805.04770, with other weights to begin with in each
    round, and CompRess in place of class probabilities.

    Returns:
        A folder with one run for each round, the last one's student, and the numbers of all.
    """
    # The first round checks its own, before anything is trained.
    build.check_data_and_memory(
        build.later_round(config), build.open_datasets(config, accelerator), cache=None, accelerator=accelerator
    )
    folder = decide_on_first(accelerator, lambda: build.run_folder(config))
    decide_on_first(accelerator, lambda: claim(folder, build.identity(config), resume=config.machine.resume))
    results: dict[str, dict[str, Any]] = {}
    for number in range(1, config.pair.rounds + 1):
        build.announce(accelerator, f"round {number} of {config.pair.rounds}")
        last = run(build.round_config(config, folder, number), accelerator)
        if config.machine.evaluate and accelerator.is_main_process:
            _collect_round(results, last, number)
    if accelerator.is_main_process:
        shutil.copytree(last / "student", folder / "student", dirs_exist_ok=True)
        if results:
            write_text_atomically(folder / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
            for dataset, by_role in results.items():
                print_comparison(f"{Path(dataset).name}, {config.pair.rounds} rounds, top-1", by_role)
    accelerator.wait_for_everyone()
    return folder


def _collect_round(results: dict[str, dict[str, Any]], folder: Path, number: int) -> None:
    """Add the numbers of a round; its teacher, from the second on, is the student of the round before."""
    for dataset, by_role in json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8")).items():
        kept = {role: value for role, value in by_role.items() if number == 1 or role.startswith("student, dist")}
        renamed = {role if not _is_trained(role) else f"{role}, round {number}": value for role, value in kept.items()}
        results.setdefault(dataset, {}).update(renamed)


def _is_trained(role: str) -> bool:
    return role in ("student, distilled", "student, supervised")


def _learn_from_labels(run: Run) -> None:
    student = build.create_student(run.config)
    build.announce(run.accelerator, f"{student.name} learns from labels; the run is kept in {run.folder}")
    dataset = build.training_set(
        run.config, run.manifests, student_view=student.view, teacher_views=[], accelerator=run.accelerator
    )
    num_classes = len(run.manifests[0].classes)
    task = build.create_supervised(run.config, student=student, num_classes=num_classes, accelerator=run.accelerator)
    step = _train(run, task, task.execution, student, dataset, facts={"supervised": True})
    _evaluate_all(run, {"student, supervised": (student, task.execution)}, step=step)


def _learn_from_teachers(run: Run) -> None:
    config = run.config
    build.check_data_and_memory(config, run.manifests, run.cache, run.accelerator)
    student = build.create_student(config)
    teachers: list[Encoder] | TeacherCache
    if run.cache is not None:
        teachers, sources, views = run.cache, [str(run.cache.folder)], [run.cache.teacher_view]
    elif build.SELF in config.pair.teacher:
        teachers, sources, views = [], ["its EMA copy"], [student.view]
    else:
        if build.AUTO in config.pair.teacher_weights:
            build.check_loaded_teachers(config, student)
        chosen = [_with_weights(run, options) for options in build.chosen_teachers(config)]
        teachers = [build.create_teacher(options, student.view) for options in chosen]
        sources, views = [options.weights for options in chosen], [teacher.view for teacher in teachers]
    dataset = build.training_set(
        config, run.manifests, student_view=student.view, teacher_views=views, accelerator=run.accelerator
    )
    if run.cache is not None:
        dataset = build.replay_cached_clips(config, run.cache, dataset)
    named = " and ".join(f"{name} ({source})" for name, source in zip(config.pair.teacher, sources, strict=True))
    build.announce(run.accelerator, f"{student.name} learns from {named}; the run is kept in {run.folder}")
    distiller = build.create_distiller(
        config,
        student=student,
        teachers=teachers,
        dataset=dataset,
        num_classes=len(run.manifests[0].classes),
        folder=run.folder,
        accelerator=run.accelerator,
    )
    identities = [teacher.identity for teacher in distiller.teachers]
    facts = {
        "supervised": False,
        "teacher": " and ".join(identity[0] for identity in identities),
        "teacher_weights_sha256": " and ".join(identity[1] for identity in identities if len(identity) > 1),
        "objective": list(config.objective.objective),
        "adapters": {term.name: term.adapter for lesson in distiller.lessons for term in lesson.terms.values()},
    }
    step = _train(run, distiller, distiller.execution, student, dataset, facts=facts)
    random_student = build.create_student(config, is_fresh=True)
    distiller.execution.place(random_student)  # the same precision for both students
    encoders = {"student, random": (random_student, distiller.execution)}
    frozen = [] if isinstance(teachers, TeacherCache) else teachers  # of a cache there is none to evaluate
    of_teachers = {
        "teacher" if len(frozen) == 1 else f"teacher {number}": (
            teacher,
            build.choose_execution(config, teacher, run.accelerator),
        )
        for number, teacher in enumerate(frozen, start=1)
    }
    encoders = {**of_teachers, **encoders, "student, distilled": (student, distiller.execution)}
    _evaluate_all(run, encoders, step=step)


def _with_weights(run_: Run, options: build.TeacherOptions) -> build.TeacherOptions:
    """With the given weights; for ``auto`` on toyactions those of a teacher that is trained first and kept."""
    if options.weights != build.AUTO:
        return options
    if not build.trains_its_own_teacher(run_.manifests):
        return build.with_published_weights(options)
    made = build.teacher_config(run_.config, options, run_.folder, run_.manifests)
    assert made.machine.out is not None
    out = made.machine.out
    if not decide_on_first(run_.accelerator, lambda: find_student(out) is not None):
        build.create_student(run_.config)  # wrong --student-weights are named before minutes of training
        build.announce(run_.accelerator, f"no weights are known for {options.name}: it is trained with labels first")
        run(made, run_.accelerator)
    return replace(options, weights=str(made.machine.out))


def _train(
    run: Run, task: Task, execution: Execution, student: Encoder, dataset: PairedClips, *, facts: dict[str, Any]
) -> int:
    """Train to the end and export the student; gives the last step."""
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
    student.classifier = task.classifier
    facts = {
        **facts,
        "datasets": [manifest.dataset for manifest in run.manifests],
        "split": run.config.data.split,
        "num_clips": len(dataset),
        "num_unreadable": len(state.unreadable),
        "steps": state.step,
        "seconds": round(state.seconds, 1),
    }
    names = run.manifests[0].classes
    decide_on_first(
        run.accelerator, lambda: save_student(student, run.folder / "student", facts=facts, class_names=names)
    )
    return state.step


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


def _evaluate_all(run: Run, encoders: dict[str, tuple[Encoder, Execution]], *, step: int) -> None:
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
                protocols=_protocols(manifest, run.config.data.split),
                num_workers=run.config.machine.workers,
                decoder=run.config.data.decoder,
                short_clips=run.config.data.short_clips,
                features_folder=run.folder / FOLDER_NAME,
                description=role,
            )
            for role, (encoder, execution) in encoders.items()
        }
        results[str(manifest.root)] = {role: evaluation.to_json() for role, evaluation in evaluations.items()}
        if run.accelerator.is_main_process:
            track_results(run.config.machine.tracker, run.folder, results[str(manifest.root)], step=step)
            _report(manifest, run.config.data.split, evaluations)
    if run.accelerator.is_main_process:
        write_text_atomically(run.folder / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
        build.announce(run.accelerator, f"numbers: {run.folder / RESULTS_NAME}; student: {run.folder / 'student'}")


def _protocols(manifest: Manifest, split: str) -> tuple[str, ...]:
    """What a run ends with: k-NN, linear, and clusters where there is a clip for each."""
    num_clips = sum(manifest.videos[i].is_usable for i in manifest.select(split=split, part="train"))
    can_cluster = 2 * len(manifest.classes) <= num_clips <= MAX_CLUSTERED_CLIPS
    return ("knn", "linear", "cluster") if can_cluster else ("knn", "linear")


def print_comparison(title: str, by_role: dict[str, dict[str, Any]]) -> None:
    """Print one row a network.

    Args:
        title: Above the table.
        by_role: Role to what ``Evaluation.to_json`` gives, as ``results.json`` keeps it for each dataset.
    """
    shown = {
        name: title
        for name, title in TABLE_PROTOCOLS.items()
        if any(name in evaluation["results"] for evaluation in by_role.values())
    }
    rows = [
        (role, evaluation["encoder"], *(f"{evaluation['results'][name]['top1']:.1%}" for name in shown))
        for role, evaluation in by_role.items()
    ]
    print_table(title, ("", "encoder", *shown.values()), rows)


def _report(manifest: Manifest, split: str, evaluations: dict[str, Evaluation]) -> None:
    """Print the table of one dataset, its coverage, and a warning of a weak teacher."""
    by_role = {role: evaluation.to_json() for role, evaluation in evaluations.items()}
    print_comparison(f"{manifest.dataset}, split {split}, top-1", by_role)
    worst = max(evaluations.values(), key=lambda evaluation: len(evaluation.unreadable))
    print(f"{worst.num_test} test clips evaluated, {len(worst.unreadable)} could not be read")
    _warn_of_weak_teacher(evaluations, len(manifest.classes))


def _warn_of_weak_teacher(evaluations: dict[str, Evaluation], num_classes: int) -> None:
    """Say so where the teacher is near chance: its neighbourhoods teach nothing."""
    for role in (role for role in evaluations if role.startswith("teacher")):
        _warn_if_weak(role, evaluations[role].results["linear"].top1, 1 / num_classes)


def _warn_if_weak(role: str, accuracy: float, chance: float) -> None:
    if accuracy - chance < WEAK_TEACHER_SHARE * (1 - chance):
        print(
            f"The {role}'s linear accuracy ({accuracy:.1%}) is near chance ({chance:.1%}), so there is little to "
            "learn from it: train it longer (--teacher-epochs), at a larger --teacher-size, or choose another teacher."
        )


if __name__ == "__main__":
    main()
