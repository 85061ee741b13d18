"""One run, from its configuration to its folder: teachers, training, the student's files, the final evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from crossdistill.data.dataset import PairedClips
from crossdistill.data.entries import keys_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import require_full_batch
from crossdistill.distillation.distiller import Distiller
from crossdistill.distillation.student import find_student, read_facts, save_student
from crossdistill.distillation.task import Task
from crossdistill.distillation.teachers import Teacher
from crossdistill.encoders import Encoder
from crossdistill.encoders.compilation import require_compiler
from crossdistill.errors import SAME_COMMAND, Stopped, UserError
from crossdistill.evaluation.evaluate import evaluate_encoder
from crossdistill.evaluation.roles import Role, teacher_roles
from crossdistill.recipes.checks import check_configuration, check_data_and_memory, terms_of, uses_labels
from crossdistill.recipes.config import AUTO, RunConfig
from crossdistill.recipes.context import Batches, RunContext
from crossdistill.recipes.data import (
    count_training_clips,
    evaluable,
    is_toyactions,
    open_datasets,
    select_training_clips,
    views_of,
)
from crossdistill.recipes.final_evaluation import evaluate_networks
from crossdistill.recipes.folds import facts_of_labels, folded_dataset
from crossdistill.recipes.identity import choose_folder, contents, identity, own_teacher_config, upgrade
from crossdistill.recipes.proxy import proxy_stage, student_stage
from crossdistill.recipes.recorded_teachers import RecordedTeacher
from crossdistill.recipes.sizes import SIZES, fit_to_data
from crossdistill.recipes.student import create_student
from crossdistill.recipes.tasks import create_distiller, create_optimizer, create_plan, create_supervised
from crossdistill.recipes.teachers import TeacherOptions, TeacherSource, published_weights, teacher_sources
from crossdistill.recipes.unlabelled_evaluation import StoredEmbeddings
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.loop import train
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.distributed import create_accelerator, decide_on_first, use_all_cores

EPOCHS = "optimization.epochs"


def run(
    config: RunConfig,
    accelerator: Accelerator | None = None,
    *,
    is_common: bool = False,
    like: Batches | None = None,
) -> Path:
    """Train and evaluate as configured.

    Args:
        config: The configuration.
        accelerator: Created here if None.
        is_common: Whether several commands may want this run at the same time. It waits for another process that
            trains it, and then takes the student.
        like: The batches of a run that this one is a part of.

    Returns:
        The run's folder; ``RunFolder`` names the files in it.

    Raises:
        UserError: The configuration, the data or the weights cannot be used, or another process uses the folder.
        Stopped: Ctrl-C, SIGTERM or SIGUSR1; the message says how to continue.
    """
    sources = teacher_sources(config)
    check_configuration(config, sources)
    if config.pair.rounds > 1:
        from crossdistill.recipes.rounds import run_rounds

        return run_rounds(config, accelerator)
    accelerator = accelerator or create_accelerator()
    use_all_cores(accelerator)
    if config.machine.compile:
        require_compiler(accelerator.device)
    manifests = open_datasets(config, accelerator)
    folder = RunFolder(decide_on_first(accelerator, lambda: choose_folder(config, sources)))
    num_clips = count_training_clips(config, manifests, uses_labels=uses_labels(config))
    try:
        config, batches = fit_to_data(config, num_clips, folder, accelerator, like=like)
    except UserError:
        # If it is another run altogether, that is the reason, and not its batches.
        decide_on_first(accelerator, lambda: _require_same_run(config, manifests, folder))
        raise
    # Before a teacher is loaded, which may take minutes.
    require_full_batch(num_clips, batches.start.batch_size, batches.start.num_processes)
    context = RunContext(config, manifests, folder, accelerator, batches)
    with claimed(context, is_common=is_common) as is_finished:
        if is_finished:
            context.announce(f"{folder.path} is finished: its student is taken")
        elif config.pair.supervised:
            _train_with_labels(context)
        elif config.pair.proxy is not None:
            _train_through_proxy(context, sources)
        else:
            _train_with_teachers(context, sources)
        if not config.machine.keep_checkpoints:
            decide_on_first(accelerator, Checkpoints(folder.checkpoints).keep_weights_alone)
    return folder.path


def _require_same_run(config: RunConfig, manifests: Sequence[Manifest], folder: RunFolder) -> None:
    if config.machine.resume and folder.is_started and folder.config.is_file():
        digests = contents(config, manifests)
        folder.require_same_but((*SIZES, EPOCHS), identity(config), contents=digests, upgrade=upgrade)


@contextlib.contextmanager
def claimed(run: RunContext, *, is_common: bool = False) -> Iterator[bool]:
    """Hold the run's folder inside the block, on the first process, and write the configuration into it.

    Yields:
        Whether ``is_common``, and another process has finished the run.
    """
    with contextlib.ExitStack() as held:

        def release(kind: type[BaseException] | None, *_: object) -> None:
            # With --resume, other processes may go on: they need the batches that this start has written down.
            if kind is None or not (issubclass(kind, KeyboardInterrupt) and run.config.machine.resume):
                run.folder.release()

        def take() -> bool:
            on_wait = (lambda holder: run.announce(f"{holder}: waiting for it")) if is_common else None
            held.enter_context(run.folder.lock(on_wait))
            held.push(release)  # only a folder that this process holds
            if is_common and find_student(run.folder.path) is not None:
                return True
            digests, resume = contents(run.config, run.manifests), run.config.machine.resume
            # Each round learns from the end of the last, and a student from the end of its proxy.
            may_grow = EPOCHS if run.config.pair.rounds == 1 and run.config.pair.proxy is None else ""
            run.folder.claim(
                identity(run.config),
                num_processes=run.batches.start.num_processes,
                contents=digests,
                resume=resume,
                may_grow=may_grow,
                upgrade=upgrade,
            )
            return False

        try:
            yield decide_on_first(run.accelerator, take)
        except KeyboardInterrupt as error:
            raise _stopped(error, run.folder) from None


def _stopped(error: KeyboardInterrupt, folder: RunFolder) -> Stopped:
    """Return the error that says what is kept, and how the run is continued."""
    if not folder.is_started:
        return Stopped.by(error, SAME_COMMAND)
    steps = Checkpoints(folder.checkpoints).steps()
    kept = f"the checkpoint of step {steps[-1]}" if steps else "what was done"
    return Stopped.by(error, f"{kept} is kept in {folder.path}, and --resume continues the run", needs_resume=True)


def _train_with_labels(run: RunContext) -> None:
    student = create_student(run.config)
    dataset = select_training_clips(
        run.config, run.manifests, student_view=student.view, uses_labels=True, accelerator=run.accelerator
    )
    run.announce(f"{student.name} learns from labels; the run is kept in {run.folder.path}")
    task = create_supervised(run, student)
    facts = {"supervised": True, **facts_of_labels(run.config, run.manifests[0], dataset)}
    step = _train(run, task, student, dataset, facts=facts)
    evaluate_networks(run, {str(Role.SUPERVISED): (student, task.execution)}, step=step)


def _train_through_proxy(context: RunContext, sources: list[TeacherSource]) -> None:
    """Train the proxy in a folder of its own, unless an interrupted run finished it, and then the student."""
    config, accelerator, proxy = context.config, context.accelerator, context.folder.proxy.path
    # What is wrong with the student's stage is named before the proxy is trained for hours.
    check_data_and_memory(config, sources, context.manifests, accelerator, context.batches)
    second = student_stage(config, str(proxy))
    student, learner = create_student(second), create_student(proxy_stage(config, context.folder, ()))
    select_training_clips(
        second,
        context.manifests,
        student_view=student.view,
        teacher_views=[learner.view],
        uses_labels=uses_labels(config),
        accelerator=accelerator,
    )
    sources = _find_weights(context, sources, learner)
    if not decide_on_first(accelerator, lambda: find_student(proxy) is not None):
        weights = [name for source in sources for name in source.weights_option]
        run(proxy_stage(config, context.folder, weights), accelerator, like=context.batches)
    _train_with_teachers(replace(context, config=second), teacher_sources(second), proxied=sources)


def _train_with_teachers(
    run: RunContext, sources: list[TeacherSource], *, proxied: Sequence[TeacherSource] = ()
) -> None:
    """Train the student with its teachers, and evaluate all networks.

    Args:
        run: The run.
        sources: The teachers.
        proxied: The teachers of the only teacher, which is a proxy.
    """
    config = run.config
    check_data_and_memory(config, sources, run.manifests, run.accelerator, run.batches)
    student = create_student(config)
    sources = _find_weights(run, sources, student)
    execution = run.choose_execution(student, is_trained=True)
    teachers = [source.open(run, student, execution, number=number) for number, source in enumerate(sources)]
    clips = select_training_clips(
        config,
        run.manifests,
        student_view=student.view,
        teacher_views=views_of(teachers),
        uses_labels=uses_labels(config),
        crops_teachers_apart=any(teacher.has_own_crops for teacher in teachers),
        accelerator=run.accelerator,
    )
    for teacher in teachers:
        clips = teacher.select_clips(clips)
    seen = [f", {each.encoder.view.size_text}" if each.sees_clips else "" for each in teachers]
    named = " and ".join(f"{source.name} ({source.origin}{view})" for source, view in zip(sources, seen, strict=True))
    run.announce(f"{student.name} ({student.view.size_text}) learns from {named}; the run is kept in {run.folder.path}")
    distiller = create_distiller(run, student, execution, teachers, clips)
    facts = _facts_of(distiller, sources, config)
    if proxied:
        facts["teachers_of_proxy"] = read_facts(run.folder.proxy.path)[1]["training"]["teachers"]
    if config.machine.teacher_sharding and config.machine.evaluate:
        run.announce("a sharded teacher is not evaluated: crossdistill evaluate does it where the teacher fits")
    if config.machine.compile:
        for teacher in distiller.teachers:
            teacher.compile()
    step = _train(run, distiller, student, clips, facts=facts)
    random_student = create_student(config, is_random=True)
    execution.place(random_student)  # both students run in the same precision
    networks, teachers = _networks_by_role(distiller.teachers), list(distiller.teachers)
    if proxied and config.machine.evaluate:
        (proxy,) = distiller.teachers
        teachers = [source.open(run, proxy.encoder, execution, number=i) for i, source in enumerate(proxied)]
        networks = _networks_by_role(teachers) | {str(Role.PROXY): network for network in proxy.networks}
    evaluate_networks(
        run,
        {
            **{role: (network, run.choose_execution(network)) for role, network in networks.items()},
            str(Role.RANDOM): (random_student, execution),
            str(Role.DISTILLED): (student, execution),
        },
        step=step,
        stored=partial(_stored_embeddings, teachers, clips),  # a proxy's clips are those of its student
    )


def _networks_by_role(teachers: Sequence[Teacher]) -> dict[str, Encoder]:
    """Return the networks of all teachers, one after another, by their roles."""
    networks = [network for teacher in teachers for network in teacher.networks]
    return dict(zip(teacher_roles(len(networks)), networks, strict=True))


def _stored_embeddings(teachers: Sequence[Teacher], clips: PairedClips) -> dict[str, StoredEmbeddings]:
    """Return the embeddings of each cached teacher by its role."""
    found = {}
    for role, teacher in zip(teacher_roles(len(teachers)), teachers, strict=True):
        stored = teacher.stored_embeddings()
        if stored is not None:
            keys = keys_of(clips.entries)
            by_key = {keys[i]: embedding for i, embedding in stored.items()}
            found[role] = StoredEmbeddings(teacher.encoder.name, teacher.encoder.embed_dim, by_key)
    return found


def weights_finder(run_context: RunContext) -> Callable[[TeacherOptions], str]:
    """Return what finds the weights of ``auto``: published, or of a run that it trains, for toyactions and folds."""

    def find(options: TeacherOptions) -> str:
        manifests = run_context.manifests
        if options.split is not None:
            manifests = [folded_dataset(run_context.config, manifests)]
        elif not is_toyactions(manifests):
            return published_weights(options)
        shots = run_context.config.data.shots
        if shots is not None:
            raise UserError(
                f"{options.name} would learn from all labels, and --shots {shots} allows few: train it with "
                f"--supervised --shots {shots} and give that run as --teacher-weights"
            )
        config = own_teacher_config(run_context.config, options, run_context.folder.path, manifests)
        folder = config.machine.out
        assert folder is not None
        if not decide_on_first(run_context.accelerator, lambda: find_student(folder) is not None):
            on = "" if options.split is None else f" on split {options.split}"
            run_context.announce(f"no weights are known for {options.name}: it is trained with labels first{on}")
            run(config, run_context.accelerator, is_common=True, like=run_context.batches)
        return str(folder)

    return find


def _find_weights(run_context: RunContext, sources: list[TeacherSource], student: Encoder) -> list[TeacherSource]:
    """Replace ``auto`` by weights, see ``weights_finder``."""
    if AUTO in run_context.config.pair.teacher_weights:
        # Given weights that do not fit are named before another teacher is trained for minutes.
        execution = run_context.choose_execution(student)
        for source in sources:
            if source.is_known:
                source.open(run_context, student, execution, number=0).require_fit(
                    terms_of(run_context.config), student
                )
    return [source.with_weights(weights_finder(run_context)) for source in sources]


def _facts_of(distiller: Distiller, sources: Sequence[TeacherSource], config: RunConfig) -> dict[str, Any]:
    """Collect the facts about the training for ``student.json``."""
    identities = [teacher.identity for teacher in distiller.teachers]
    loaded = [
        recorded.to_json()
        for teacher, source in zip(distiller.teachers, sources, strict=True)
        if source.weights
        for recorded in RecordedTeacher.all_of(teacher, source.weights)
    ]
    return {
        "supervised": False,
        "teacher": " and ".join(name for name, *hashes in identities for _ in hashes or [""]),
        "teacher_weights_sha256": " and ".join(sha256 for _, *hashes in identities for sha256 in hashes),
        "teachers": loaded,
        **({"folds": len(loaded)} if len(identities) == 1 and len(loaded) > 1 else {}),
        "objective": list(config.objective.objective),
        "adapters": {term.name: term.adapter for each in distiller.comparisons for term in each.terms.values()},
    }


def _train(
    run: RunContext,
    task: Task,
    student: Encoder,
    dataset: PairedClips,
    *,
    facts: dict[str, Any],
) -> int:
    """Train the student for all epochs, save it, and return the total number of steps."""
    state = train(
        task,
        dataset,
        create_optimizer(run.config, task.trainable),
        plan=create_plan(run),
        accelerator=run.accelerator,
        folder=run.folder,
        evaluate=_periodic_knn(run, task),
        description=student.name,
    )
    task.finish()
    # The classifier of the weights that the student started from no longer belongs to it.
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
    decide_on_first(run.accelerator, lambda: save_student(student, run.folder.student, facts=facts, class_names=names))
    return state.step


def _periodic_knn(run: RunContext, task: Task) -> Callable[[], dict[str, float]] | None:
    """Return the 1-NN evaluation of the student during training; None without a labelled dataset."""
    config = run.config
    manifests = evaluable(run.manifests, config.data.split)
    if not manifests or config.machine.knn_clips == 0:
        return None

    def evaluate() -> dict[str, float]:
        evaluation = evaluate_encoder(
            task.evaluated,
            manifests[0],
            split=config.data.split,
            execution=task.execution,
            accelerator=run.accelerator,
            protocols=("knn",),
            ks=(1,),
            reading=replace(run.reading, max_clips=config.machine.knn_clips),
        )
        return {"knn": evaluation.results["1-nn"].top1}

    return evaluate
