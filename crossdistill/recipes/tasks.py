"""Create the arguments of the training loop from the configuration: task, optimizer and plan."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from crossdistill.data.dataset import PairedClips
from crossdistill.data.distort import distort
from crossdistill.distillation.distiller import Distiller
from crossdistill.distillation.student_with_heads import StudentWithHeads
from crossdistill.distillation.supervised import Regularization, SupervisedTask
from crossdistill.distillation.teachers import CrossFittedTeacher, Teacher
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.recipes.alignment import align_folds
from crossdistill.recipes.checks import BANK_DTYPES, standardization_of, terms_of
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.context import RunContext
from crossdistill.recipes.sizes import bank_size_for, fillable_bank_size
from crossdistill.recipes.standardization import standardize_teachers
from crossdistill.training.loop import TrainingPlan
from crossdistill.training.optimizer import create_optimizer as create_optimizer_of
from crossdistill.training.schedule import learning_rate

# Added to --seed for the heads, so that they do not start with the random numbers of the encoder's first layers.
HEAD_SEED_SHIFT = 1 << 32
# Number of k-NN evaluations in one run, unless --knn-every-epochs says otherwise.
NUM_EVALUATIONS = 5


def create_distiller(
    run: RunContext, student: Encoder, execution: Execution, teachers: Sequence[Teacher], dataset: PairedClips
) -> Distiller:
    """Create the distillation task.

    Args:
        run: The run.
        student: The student that is trained.
        execution: Device, precision and memory layout of the student.
        teachers: The teachers. They are standardised if the configuration says so.
        dataset: The training clips, by which teachers are aligned and standardised.
    """
    config, accelerator = run.config, run.accelerator
    objective, terms = config.objective, terms_of(config)
    for teacher in teachers:  # before minutes of embedding
        teacher.require_fit(terms, student)
    if any(term.objective.compares == "features" for term in terms):
        teachers = [_in_one_space(run, teacher, dataset) for teacher in teachers]
    if objective.measured_scale is not None:
        teachers = standardize_teachers(
            teachers,
            dataset,
            method=objective.measured_scale,
            accelerator=accelerator,
            batch_size=run.batches.now.batch_size,
            num_workers=config.machine.workers,
            folder=run.folder.path,
        )

    def gather(tensor: Tensor) -> Tensor:
        gathered: Tensor = accelerator.gather(tensor)
        return gathered

    bank_size = fillable_bank_size(config, len(dataset), run.batches)
    is_asked_for = objective.bank_size != bank_size_for(len(dataset))  # a default that is lowered needs no notice
    if (
        bank_size != objective.bank_size
        and is_asked_for
        and any(term.objective.student_anchors is not None for term in terms)
    ):
        run.announce(
            f"the run draws {bank_size} clips in all: its memory bank has room for so many, and not for "
            f"{objective.bank_size} (--bank-size, or that of a preset)"
        )
    # The heads start with the same weights whatever was built before them: a teacher's network, or its cache.
    torch.manual_seed(config.machine.seed + HEAD_SEED_SHIFT)
    return Distiller(
        student=student,
        teachers=teachers,
        objective=terms,
        bank_size=bank_size,
        bank_dtype=BANK_DTYPES[objective.bank_dtype],
        ema_momentum=objective.ema_momentum,
        teacher_drop=objective.teacher_drop,
        standardizes=standardization_of(config) == "running",
        mixes=objective.mix,
        num_classes=len(run.manifests[0].classes) or None,
        # What moves is not blurred: flow and depth have no focus, and a skeleton no neighbouring pixels.
        distort=functools.partial(distort, is_picture=not student.view.kind.has_time)
        if config.data.strong_views
        else None,
        student_execution=execution,
        gather=gather,
    )


def _in_one_space(run: RunContext, teacher: Teacher, dataset: PairedClips) -> Teacher:
    """Align the networks of a cross-fitted teacher; return any other teacher as it is."""
    if not isinstance(teacher, CrossFittedTeacher):
        return teacher
    return align_folds(
        teacher,
        dataset,
        accelerator=run.accelerator,
        batch_size=run.config.optimization.clips_per_batch,
        num_workers=run.config.machine.workers,
        folder=run.folder.path,
    )


def create_supervised(run: RunContext, student: Encoder) -> SupervisedTask:
    """Create the task that trains the student with labels."""
    execution = run.choose_execution(student, is_trained=True)
    options = run.config.supervision
    return SupervisedTask(
        encoder=student,
        execution=execution,
        num_classes=len(run.manifests[0].classes),
        regularization=Regularization(
            label_smoothing=options.label_smoothing,
            mixup=options.mixup,
            cutmix=options.cutmix,
            ema_decay=options.weight_ema,
        ),
    )


def create_optimizer(config: RunConfig, model: StudentWithHeads) -> torch.optim.Optimizer:
    """Create the optimizer."""
    options = config.optimization
    return create_optimizer_of(
        model,
        optimizer=options.optimizer,
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
    )


def create_plan(run: RunContext) -> TrainingPlan:
    """Create the plan: how long, how fast, and how often to log, evaluate and save."""
    config, parts = run.config, run.batches.now
    options, machine = config.optimization, config.machine

    def rate(step: int, num_steps: int, steps_per_epoch: int) -> float:
        return learning_rate(
            step,
            peak=options.lr,
            num_steps=num_steps,
            num_warmup_steps=round(options.warmup_epochs * steps_per_epoch),
            schedule=options.schedule,
            milestones=options.lr_milestones,
            drop=options.lr_drop,
        )

    def evaluate_every(num_steps: int, steps_per_epoch: int) -> int:
        if machine.knn_every_epochs:
            return max(1, round(machine.knn_every_epochs * steps_per_epoch))
        return max(1, num_steps // NUM_EVALUATIONS)

    return TrainingPlan(
        num_epochs=options.epochs,
        batch_size=parts.batch_size,
        accumulate=parts.accumulate,
        epoch_multiple=run.batches.start.clips_per_batch,
        learning_rate=rate,
        clip_norm=options.clip_norm,
        seed=machine.seed,
        num_workers=machine.workers,
        checkpoint_every_steps=machine.checkpoint_every_steps,
        checkpoint_every_minutes=machine.checkpoint_every_minutes,
        log_every_steps=machine.log_every_steps,
        evaluate_every_steps=evaluate_every,
        max_unreadable=config.data.max_unreadable,
        tracker=machine.tracker,
        is_compiled=machine.compile,
    )
