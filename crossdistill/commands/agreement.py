"""``crossdistill agreement``: will it help? A teacher and a student compared on a sample of clips."""

from __future__ import annotations

from collections.abc import Sequence

from crossdistill.commands.train import parse_beside_training
from crossdistill.recipes.command_options import AgreementOptions

DESCRIPTION = """Compare teacher and student on a sample of clips, before training or after it: common nearest
neighbours, linear CKA, and whether the teacher's neighbourhoods show classes at all.

The command takes every option of crossdistill train beside its own; teacher, student, data, split, seed, workers and
precision matter here. --student may also be the folder of a run or of a trained student. For example:

crossdistill agreement --teacher rgb_r3d18 --teacher-weights kinetics400 --student flow_r3d18 --data data/ucf101"""


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    own, config = parse_beside_training(AgreementOptions, arguments, prog=prog, description=DESCRIPTION)
    from crossdistill.evaluation.teacher_agreement import print_agreement_report
    from crossdistill.recipes.agreement import measure_agreement
    from crossdistill.utils.distributed import create_accelerator

    accelerator = create_accelerator()
    report = measure_agreement(config, own, accelerator)
    if accelerator.is_main_process:
        print_agreement_report(report)
