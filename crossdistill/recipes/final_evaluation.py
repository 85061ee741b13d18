"""The evaluation at the end of a run: teacher, random student and trained student.

On every labelled dataset by protocols; without any by the agreement with the teacher and the spread of features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.evaluate import Evaluation, evaluate_encoder
from crossdistill.evaluation.in_words import in_words
from crossdistill.evaluation.results import TOP1, Bootstrap, read_evaluation
from crossdistill.evaluation.roles import NumberedRole, Role
from crossdistill.evaluation.tables import accuracy_text, bootstrap_note, print_unlabelled, reading_note
from crossdistill.evaluation.teacher_agreement import is_near_chance
from crossdistill.recipes.context import RunContext
from crossdistill.recipes.data import evaluable
from crossdistill.recipes.unlabelled_evaluation import StoredEmbeddings, compare_networks
from crossdistill.training.trackers import track_results
from crossdistill.utils.console import console, print_table
from crossdistill.utils.files import write_text_atomically

# Number of training clips above which k-means would take minutes and gigabytes.
MAX_CLUSTERED_CLIPS = 100_000
TABLE_PROTOCOLS = {"1-nn": "1-NN", "linear": "linear", "cluster": "cluster"}


def evaluate_networks(
    run: RunContext,
    networks: Mapping[str, tuple[Encoder, Execution]],
    *,
    step: int,
    stored: Callable[[], Mapping[str, StoredEmbeddings]] = dict,
) -> None:
    """Evaluate networks on every dataset, write ``results.json`` and print one table for each dataset.

    Datasets without labels count only if no dataset has labels.

    Args:
        run: The run.
        networks: Role to the network and how it runs.
        step: The run's last step, for the tracker.
        stored: Returns role to the embeddings of a teacher whose network is not at hand. It reads a whole teacher
            cache, so it is called only where there are no labels.
    """
    if not run.config.machine.evaluate:
        run.announce(f"student: {run.folder.student}")
        return
    data, machine = run.config.data, run.config.machine
    results: dict[str, dict[str, Any]] = {}
    labelled = evaluable(run.manifests, data.split)
    for manifest in labelled:
        evaluations = {
            role: evaluate_encoder(
                network,
                manifest,
                split=data.split,
                execution=execution,
                accelerator=run.accelerator,
                protocols=_protocols(manifest, data.split),
                reading=run.reading,
                features_folder=run.folder.features,
                description=role,
            )
            for role, (network, execution) in networks.items()
        }
        by_role = {role: evaluation.to_json() for role, evaluation in evaluations.items()}
        results[str(manifest.root)] = by_role
        if run.accelerator.is_main_process:
            # The file first: a tracker or a terminal may fail.
            write_text_atomically(run.folder.results, json.dumps(results, indent=2) + "\n")
            print_comparison(f"{manifest.dataset}, split {data.split}", by_role)
            if sentence := in_words(by_role):
                print(sentence)
            _print_notes(manifest, evaluations)
            track_results(machine.tracker, run.folder.path, by_role, step=step)
    known = {} if labelled else stored()
    for manifest in [] if labelled else run.manifests:
        found = compare_networks(run, manifest, networks, known)
        by_role = {role: evaluation.to_json() for role, evaluation in found.by_role.items()}
        results[str(manifest.root)] = by_role
        if run.accelerator.is_main_process:
            write_text_atomically(run.folder.results, json.dumps(results, indent=2) + "\n")
            missing = "a test part" if manifest.classes else "labels"
            print_comparison(f"{manifest.dataset}, {found.num_clips} clips without {missing}", by_role)
            for sentence in found.sentences:
                run.announce(sentence)
            track_results(machine.tracker, run.folder.path, by_role, step=step)
    if run.accelerator.is_main_process:
        run.announce(f"numbers: {run.folder.results}; student: {run.folder.student}")


def _protocols(manifest: Manifest, split: str) -> tuple[str, ...]:
    """Choose k-NN, linear, and cluster alignment if there are clips enough for every cluster."""
    num_clips = int(manifest.is_usable[manifest.positions(split=split, part="train")].sum())
    can_cluster = 2 * len(manifest.classes) <= num_clips <= MAX_CLUSTERED_CLIPS
    return ("knn", "linear", "cluster") if can_cluster else ("knn", "linear")


def print_comparison(title: str, by_role: Mapping[str, dict[str, Any]]) -> None:
    """Print a table with one row per network: accuracies in percent with half of their intervals.

    Args:
        title: Above the table.
        by_role: Role to what ``Evaluation.to_json`` returns, as ``results.json`` holds it for each dataset.
    """
    if not any(evaluation["results"] for evaluation in by_role.values()):
        print_unlabelled(title, {role: read_evaluation(evaluation) for role, evaluation in by_role.items()})
        return
    shown = {
        name: title
        for name, title in TABLE_PROTOCOLS.items()
        if any(name in evaluation["results"] for evaluation in by_role.values())
    }
    rows = [
        (role, evaluation["encoder"], *(_cell(evaluation["results"][name]) for name in shown))
        for role, evaluation in by_role.items()
    ]
    bootstrap = next((evaluation["bootstrap"] for evaluation in by_role.values() if evaluation["bootstrap"]), None)
    half = f" ± half of the {bootstrap['level']:.0%} interval" if bootstrap else ""
    print_table(f"{title}, top-1 in %{half}", ("", "encoder", *shown.values()), rows)
    if bootstrap:
        console.print(bootstrap_note("intervals", Bootstrap(**bootstrap)), highlight=False)


def _cell(result: dict[str, Any]) -> str:
    return accuracy_text(result["top1"], result["intervals"].get(TOP1))


def _print_notes(manifest: Manifest, evaluations: Mapping[str, Evaluation]) -> None:
    """Print the coverage of the evaluation, and a warning about a teacher near chance."""
    worst = max(evaluations.values(), key=lambda evaluation: len(evaluation.unreadable))
    print(reading_note(worst))
    chance = 1 / len(manifest.classes)
    for role, evaluation in evaluations.items():
        parsed = NumberedRole.parse(role)
        accuracy = evaluation.results["linear"].top1
        if parsed is not None and parsed.role is Role.TEACHER and is_near_chance(accuracy, chance):
            print(
                f"The {role}'s linear accuracy ({accuracy:.1%}) is near chance ({chance:.1%}), so there is little to "
                "learn from it: train it longer (--teacher-epochs), at a larger --teacher-size, or choose another "
                "teacher."
            )
