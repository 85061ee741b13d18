"""``--compile``: networks compiled by ``torch.compile``, and its errors as one sentence.

Only the call is compiled: the module keeps its names and its hooks, so checkpoints, EMA copies and exports see nothing
of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from crossdistill.errors import UserError, first_line

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(function: Callable[Arguments, Result], *, name: str) -> Callable[Arguments, Result]:
    """Compile a module or a function for inputs of one shape; the compiler runs at the first call.

    Args:
        function: Given to ``torch.compile``. DistributedDataParallel comes inside, so that gradients of one part are
            sent while those of another are computed.
        name: The network's name, for errors.

    Raises:
        UserError: At a call, if the network cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # importing it takes a second

    fast = torch.compile(function, dynamic=False)

    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return fast(*args, **kwargs)
        except TorchDynamoException as error:
            raise UserError(f"{name} cannot be compiled ({first_line(error)}): remove --compile") from error

    return call


def require_compiler(device: torch.device) -> None:
    """Compile one small function for a device, so that a missing compiler is found before anything is trained.

    Earlier compiled functions of this process are dropped; they belong to finished runs.

    Raises:
        UserError: The compiler does not work.
    """
    from torch._dynamo.exc import TorchDynamoException

    torch.compiler.reset()
    try:
        torch.compile(lambda tensor: tensor.sin() + 1)(torch.ones(2, device=device))
    except (TorchDynamoException, RuntimeError) as error:
        needed = (
            "Triton, a GPU of compute capability 7.0 and a C compiler" if device.type == "cuda" else "a C++ compiler"
        )
        raise UserError(
            f"--compile needs {needed}, and compiling a small function failed ({first_line(error)}): install what is "
            "missing (CXX names another compiler), or remove --compile"
        ) from error
