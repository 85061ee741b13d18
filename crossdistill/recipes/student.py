"""The student of a run."""

from __future__ import annotations

import torch

from crossdistill.distillation.terms import Term, require_all_trained
from crossdistill.encoders import Encoder
from crossdistill.encoders.drop_path import require_drop_path, set_drop_path
from crossdistill.encoders.recomputation import recompute_activations, require_recomputable
from crossdistill.errors import UserError
from crossdistill.quantization.quantize import parse_bit_widths, quantize, require_brevitas
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.weights import (
    create_encoder_as_stored,
    load_named_weights,
    preview_encoder,
    require_weights_exist,
)


def create_student(config: RunConfig, *, is_random: bool = False) -> Encoder:
    """Build the student; its random weights depend on ``--seed`` alone.

    Args:
        config: Configuration of the run.
        is_random: Whether to ignore ``--student-weights``, for the random student of the final table.

    Raises:
        UserError: The weights cannot be loaded, or they are quantised to other bits.
    """
    pair = config.pair
    assert pair.student is not None
    torch.manual_seed(config.machine.seed)
    student = create_encoder_as_stored(pair.student, pair.student_weights, **pair.student_view)
    if pair.student_weights is not None and not is_random:
        load_named_weights(student, pair.student_weights, option="--student-weights", adapt_stem=True)
    if pair.bits is not None and student.bits is None:
        quantize(student, parse_bit_widths(pair.bits))
    if student.bits != pair.bits:
        raise UserError(
            f"--student-weights {pair.student_weights} is a student quantised to {student.bits}: add --bits "
            f"{student.bits}, or start from a student that is not quantised"
        )
    if config.optimization.drop_path is not None and not is_random:
        set_drop_path(student, config.optimization.drop_path)
    if config.machine.gradient_checkpointing and not is_random:
        recompute_activations(student)
    return student


def require_fitting_batch(batch_size: int | None, terms: list[Term]) -> None:
    """Raise a ``UserError`` if a head normalises by the batch and the batch is a single clip."""
    if batch_size == 1 and any(term.adapter.startswith("mlp") for term in terms):
        raise UserError("--batch-size is 1, but an MLP head has batch normalisation: give --batch-size 2 or more")


def check_student(config: RunConfig, terms: list[Term]) -> Encoder:
    """Check the student before anything is made, and return a preview of it: names and sizes without values."""
    pair = config.pair
    if pair.student is None:
        raise UserError("no student was given: add for example --student flow_r3d18 (crossdistill encoders lists all)")
    if pair.bits is not None:
        parse_bit_widths(pair.bits)
        require_brevitas()
    if not pair.supervised:
        require_fitting_batch(config.optimization.batch_size, terms)
    student = preview_encoder(pair.student, pair.student_weights, **pair.student_view)
    if config.optimization.drop_path is not None:
        require_drop_path(student)
    if config.machine.gradient_checkpointing:
        require_recomputable(student, bits=pair.bits)
    if pair.student_weights is not None:
        require_weights_exist("--student-weights", pair.student_weights, student)
    if not pair.supervised:
        require_all_trained(student, terms)
    return student
