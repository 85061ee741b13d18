"""Choose a number of epochs: the smallest one after which held-out accuracy rises by no more than its standard error.

    python scripts/choose_epochs.py 25=short.json 50=longer.json 100=long.json

Each file is what ``crossdistill evaluate --json`` wrote about the network that was trained for so many epochs, on the
same held-out part of the training clips. A number is chosen if no higher number is ahead of it by more than one
standard error, in any measure. The standard error of a difference is that of a paired bootstrap over people, or over
clips if there is one person. The table goes to the standard error stream, the number to the standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from crossdistill import Evaluation, paired_gains, read_evaluation
from crossdistill.errors import UserError, friendly_errors

MEASURES = ("1-nn", "linear", "lowshot-1", "lowshot-5", "lowshot-10")
ERRORS_PER_INTERVAL = 2 * 1.96
"""Standard errors in a 95 % interval."""


def gain_and_error(evaluation: Evaluation, other: Evaluation, measure: str) -> tuple[float, float]:
    """Points by which an evaluation is ahead of another one, and the standard error."""
    gain = paired_gains(evaluation, other)[measure]
    if gain.interval is None:
        raise UserError("an evaluation has no hits of single clips: evaluate again with this version")
    low, high = gain.interval
    return 100 * gain.gain, 100 * (high - low) / ERRORS_PER_INTERVAL


def choose(evaluations: Mapping[int, Evaluation]) -> tuple[int, list[str]]:
    """Choose a number of epochs; return it, and the lines of a table.

    Args:
        evaluations: Number of epochs to the evaluation after them.
    """
    lengths = sorted(evaluations)
    measures = [name for name in MEASURES if name in evaluations[lengths[0]].results]
    columns = [f"{name} | best later gain ± error" for name in measures]
    lines = [f"| epochs | {' | '.join(columns)} |", f"|{'---:|' * (1 + 2 * len(measures))}"]
    chosen = lengths[-1]
    for length in reversed(lengths):
        cells, rises = [], False
        for measure in measures:
            later = [gain_and_error(evaluations[n], evaluations[length], measure) for n in lengths if n > length]
            gain, error = max(later, key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))
            rises |= gain > error
            accuracy = 100 * evaluations[length].results[measure].top1
            cells += [f"{accuracy:.1f}", f"{gain:+.1f} ± {error:.1f}" if later else ""]
        lines.insert(2, f"| {length} | {' | '.join(cells)} |")
        if not rises:
            chosen = length
    return chosen, lines


@friendly_errors
def main() -> None:
    """Print the table and the number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="EPOCHS=FILE")
    evaluations = {}
    for word in parser.parse_args().evaluations:
        epochs, _, path = word.partition("=")
        evaluations[int(epochs)] = read_evaluation(json.loads(Path(path).read_text(encoding="utf-8")))
    chosen, lines = choose(evaluations)
    print("\n".join(lines), file=sys.stderr)
    print(chosen)


if __name__ == "__main__":
    main()
