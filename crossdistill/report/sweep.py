"""What differs between the runs of a comparison, and their numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from crossdistill.evaluation.results import Evaluation
from crossdistill.recipes.config import RunConfig, to_dict
from crossdistill.report.cost import Cost
from crossdistill.report.tables import accuracies_of, row_names

UNKNOWN = "?"  # value of an option of a run whose configuration cannot be read


def differing_options(configs: Sequence[RunConfig | None]) -> dict[str, list[str]]:
    """Return the options whose values differ between runs: name to the value of each run, as a command line takes it.

    An option that was not given is empty. Runs without a configuration (None) are not compared.

    Example:
        >>> from crossdistill.recipes.config import MachineConfig
        >>> differing_options([RunConfig(), None, RunConfig(machine=MachineConfig(seed=1))])
        {'seed': ['0', '?', '1']}
    """
    values = [None if config is None else _texts(config) for config in configs]
    known = [options for options in values if options is not None]
    names = [name for name in (known[0] if known else ()) if len({options[name] for options in known}) > 1]
    return {name: [UNKNOWN if options is None else options[name] for options in values] for name in names}


def _texts(config: RunConfig) -> dict[str, str]:
    return {name: _text(value) for section in to_dict(config).values() for name, value in section.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def numbers_as_csv(
    names: Sequence[str],
    options: Mapping[str, Sequence[str]],
    evaluations: Sequence[Evaluation | None],
    costs: Sequence[Cost | None],
) -> str:
    """Write one line for each run: its differing options, top-1 accuracies with the ends of their intervals, and costs.

    Accuracies are fractions in [0, 1] of all digits; a number that is not known is empty. Times are those of the page.
    Runs without labels have the share of the teacher's neighbours that the student shares, and its feature spread.
    """
    protocols = row_names(evaluation for evaluation in evaluations if evaluation is not None)
    rows = []
    for position, (name, evaluation, cost) in enumerate(zip(names, evaluations, costs, strict=True)):
        row: dict[str, Any] = {"run": name, **{option: values[position] for option, values in options.items()}}
        accuracies = {} if evaluation is None else accuracies_of(evaluation)
        row["test_clips"] = None if evaluation is None else evaluation.num_test
        for protocol in protocols:
            cell = accuracies.get(protocol)
            ends = (None, None) if cell is None or cell.interval is None else cell.interval
            row |= {protocol: cell and cell.value, f"{protocol} low": ends[0], f"{protocol} high": ends[1]}
        if any(evaluation is not None and not evaluation.results for evaluation in evaluations):
            row |= _unlabelled(evaluation)
        row["parameters"] = cost and cost.num_parameters
        row["multiply_adds"] = cost and round(cost.gmacs * 1e9)
        row["seconds_per_clip"] = cost and cost.latency_seconds
        row["seconds_per_clip_exported"] = cost and cost.exported_seconds
        row["weight_file_bytes"] = cost and cost.num_bytes
        rows.append(row)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _unlabelled(evaluation: Evaluation | None) -> dict[str, Any]:
    pair = evaluation.agreement[0] if evaluation is not None and evaluation.agreement else None
    ends = (None, None) if pair is None or pair.overlap_interval is None else pair.overlap_interval
    spread = None if evaluation is None else evaluation.spread
    shared = {"shared_neighbours": pair and pair.overlap, "shared_neighbours low": ends[0]}
    shared |= {"shared_neighbours high": ends[1], "cka": pair and pair.cka}
    return {**shared, "effective_rank": spread and spread.effective_rank, "uniformity": spread and spread.uniformity}
