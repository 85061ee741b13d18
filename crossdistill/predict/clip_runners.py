"""How a student sees a stream: clip by clip, or frame by frame where its network allows it.

Shapes: B clips, C channels, T frames of a clip, S side in pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.export.network import Outputs, with_logits
from crossdistill.predict.runtimes import Runtime, TorchRuntime
from crossdistill.types import View


class ClipRunner(Protocol):
    """How a student sees a stream: what is computed of a frame alone, and then of a clip."""

    def of_frame(self, view: View) -> Any:
        """Return what is kept of a frame, a view [1, C, 1, S, S]."""
        ...

    def of_clip(self, frames: list[Any]) -> Outputs:
        """Return the outputs for a clip, given what was kept of its T frames."""
        ...


@dataclass(frozen=True)
class WholeClips:
    """The runtime sees every clip as a whole."""

    runtime: Runtime

    def of_frame(self, view: View) -> View:
        """Keep the frame."""
        return view

    def of_clip(self, frames: list[View]) -> Outputs:
        """Run the clip."""
        return self.runtime.run(View(torch.cat([frame.values for frame in frames], dim=2), frames[0].channel_scale))


@dataclass(frozen=True)
class SingleFrames:
    """The network sees each frame once; the features of a clip are the mean over its frames.

    That equals a pass over the clip for networks of single frames. A network that remembers knows more of the past than
    a pass over the clip.
    """

    runtime: TorchRuntime
    embed: Callable[[Tensor], Tensor]
    """See ``Encoder.frame_embedder``."""

    @torch.inference_mode()
    def of_frame(self, view: View) -> Tensor:
        """Embed the frame: [1, D]."""
        execution = self.runtime.embedder.execution
        return execution.embed(self.embed, view.to(execution.device)).cpu()

    @torch.inference_mode()
    def of_clip(self, frames: list[Tensor]) -> Outputs:
        """Return the mean, and its logits."""
        return with_logits(torch.stack(frames).mean(dim=0), self.runtime.classifier)


def choose_runner(runtime: Runtime, every: int) -> ClipRunner:
    """Run a network that sees frames one at a time on single frames, others on whole clips.

    Raises:
        UserError: The network remembers the frames that it has seen, and ``every`` would give it others.
    """
    if not isinstance(runtime, TorchRuntime):
        return WholeClips(runtime)
    encoder = runtime.embedder.encoder.eval()
    embed = encoder.frame_embedder()
    if embed is None:
        return WholeClips(runtime)
    if encoder.info.frame_by_frame is not None and every % runtime.view.stride:
        raise UserError(
            f"--every {every} is no multiple of {runtime.view.stride}, the stride of {runtime.name}, which sees each "
            f"frame once: give {runtime.view.stride}, or a multiple of it"
        )
    return SingleFrames(runtime, embed)
