"""Self-distillation in rounds: each student is taught by the student of the round before.

Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born Again Neural Networks, ICML 2018, arXiv 1805.04770. Deviation:
every round starts from other random weights, and CompRess replaces class probabilities.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from crossdistill.evaluation.roles import NumberedRole, Role
from crossdistill.recipes.checks import check_configuration, check_data_and_memory, uses_labels
from crossdistill.recipes.config import AUTO, RunConfig, SupervisionConfig, several
from crossdistill.recipes.context import RunContext, announce
from crossdistill.recipes.data import count_training_clips, open_datasets
from crossdistill.recipes.final_evaluation import print_comparison
from crossdistill.recipes.identity import choose_folder
from crossdistill.recipes.proxy import without_proxy
from crossdistill.recipes.run import claimed, run
from crossdistill.recipes.sizes import fit_to_data
from crossdistill.recipes.teachers import teacher_sources
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.distributed import create_accelerator, decide_on_first
from crossdistill.utils.files import write_text_atomically


def run_rounds(config: RunConfig, accelerator: Accelerator | None = None) -> Path:
    """Run all rounds.

    Returns:
        A folder with one run per round, the last round's student, and the results of all rounds.
    """
    later = _preview_of_later_rounds(config)
    later_sources = teacher_sources(later)
    check_configuration(later, later_sources)
    accelerator = accelerator or create_accelerator()
    manifests = open_datasets(config, accelerator)
    folder = RunFolder(decide_on_first(accelerator, lambda: choose_folder(config, teacher_sources(config))))
    num_clips = count_training_clips(config, manifests, uses_labels=uses_labels(config))
    config, batches = fit_to_data(config, num_clips, folder, accelerator)
    # The first round checks its own data before anything is trained.
    check_data_and_memory(_preview_of_later_rounds(config), later_sources, manifests, accelerator, batches)
    results: dict[str, dict[str, Any]] = {}
    last = folder
    with claimed(RunContext(config, manifests, folder, accelerator, batches)):
        for number in range(1, config.pair.rounds + 1):
            announce(accelerator, f"round {number} of {config.pair.rounds}")
            last = RunFolder(run(round_config(config, folder, number), accelerator, like=batches))
            if config.machine.evaluate and accelerator.is_main_process:
                _add_results(results, last, number)
        decide_on_first(accelerator, lambda: _finish(folder, last, results, num_rounds=config.pair.rounds))
    return folder.path


def _finish(folder: RunFolder, last: RunFolder, results: dict[str, dict[str, Any]], *, num_rounds: int) -> None:
    """Copy the last round's student into the folder of the rounds, and write and print the results of all rounds."""
    shutil.copytree(last.student, folder.student, dirs_exist_ok=True)
    if results:
        write_text_atomically(folder.results, json.dumps(results, indent=2) + "\n")
        for dataset, by_role in results.items():
            print_comparison(f"{Path(dataset).name}, {num_rounds} rounds", by_role)


def round_config(config: RunConfig, folder: RunFolder, number: int) -> RunConfig:
    """Return the configuration of one round, counted from 1: its folder, its seed, and from 2 on its teacher."""
    pair, data, objective = replace(config.pair, rounds=1), config.data, config.objective
    supervision = config.supervision
    if number == 1 and pair.supervised:
        # Only the later rounds have a teacher.
        data, objective = replace(data, strong_views=False), replace(objective, mix=False)
    if number > 1:
        objective, supervision = replace(objective, teacher_drop=0.0), SupervisionConfig()
        pair = replace(
            without_proxy(pair),
            supervised=False,
            teacher=several(pair.student),
            teacher_weights=(str(folder.round(number - 1).path),),
            folds=None,
            teacher_cache=None,
            teacher_frames=(),
            teacher_stride=(),
            teacher_size=(),
        )
    machine = replace(config.machine, out=folder.round(number).path, seed=config.machine.seed + number - 1)
    return replace(config, pair=pair, data=data, objective=objective, supervision=supervision, machine=machine)


def _preview_of_later_rounds(config: RunConfig) -> RunConfig:
    """Return the common configuration of rounds from 2 on, without their teacher; used only for checks."""
    later = round_config(config, RunFolder(Path()), 2)
    pair = replace(
        later.pair,
        teacher_weights=(AUTO,),
        teacher_frames=several(config.pair.student_frames),
        teacher_stride=several(config.pair.student_stride),
        teacher_size=several(config.pair.student_size),
    )
    return replace(later, pair=pair)


def _add_results(results: dict[str, dict[str, Any]], folder: RunFolder, number: int) -> None:
    """Add the results of a round. From round 2 on only the student is new: its teacher was the student before."""
    for dataset, by_role in json.loads(folder.results.read_text(encoding="utf-8")).items():
        for text, evaluation in by_role.items():
            role = Role(text) if text in set(Role) else None
            if number > 1 and role is not Role.DISTILLED:
                continue
            is_trained = role is not None and role.is_trained
            name = str(NumberedRole(role, number)) if role is not None and is_trained else text
            if number > 1:
                *_, taught_by = results[dataset]  # the student of the round before
                for pair in evaluation["agreement"]:
                    pair["students"] = [name, taught_by]
            results.setdefault(dataset, {})[name] = evaluation
