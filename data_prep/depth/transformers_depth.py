"""Depth estimated from colour, frame by frame, by a network of Hugging Face's transformers.

Streams store depth as uint16 millimetres, 0 where nothing was measured, and training turns every clip
into disparity: the nearest distance of the clip divided by distance (``crossdistill.modalities``). What a
network gives is stored so that this comes out right:

* Metric networks give metres. They are stored as millimetres, from 1 mm to 65.5 m.
* Relative networks (Depth Anything, MiDaS) give inverse depth of unknown scale. Stored is ``K / inverse
  depth``, so that a clip's disparity is the network's own inverse depth divided by the clip's largest,
  whatever ``K`` is. It is set by the video's first frame, whose nearest hundredth begins at 1000, and kept to
  the video's end: depth in a stream has one scale, and no second pass over the video is needed. Rounding to whole
  numbers then costs 0.05 % there and 0.5 % at ten times nearer; what is 65 times farther or at infinity
  becomes 65535. These numbers are no millimetres: they compare within one video only.

Every frame is estimated by itself, so relative networks flicker a little from frame to frame.

Shapes: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from crossdistill.data.streams import Picture
from crossdistill.errors import UserError
from data_prep.frames import Frame
from data_prep.recipe import Recipe

Depth = NDArray[np.float32]
"""[H, W], metres or inverse depth."""

EXAMPLE = "depth-anything/Depth-Anything-V2-Small-hf"
FARTHEST = 65535
NEAR_SHARE_PERCENT = 99.0
NEAR_STORED = 1000.0

# Whether a family of networks gives metres, or else inverse depth, by what its configuration says.
IS_METRIC: dict[str, Callable[[Any], bool]] = {
    "depth_anything": lambda config: config.depth_estimation_type == "metric",
    "depth_pro": lambda config: True,
    # DINOv2's heads, trained on metres, project their features; MiDaS's do not.
    "dpt": lambda config: bool(config.add_projection),
    "glpn": lambda config: True,
    "zoedepth": lambda config: True,
}


@dataclass(frozen=True)
class DepthNetwork:
    """A network with the processor that prepares its pictures."""

    model: Any
    processor: Any
    is_metric: bool
    """Whether it gives metres; if not, inverse depth of unknown scale."""

    def estimate(self, picture: Picture) -> Depth:
        """Estimate one picture [H, W, 3], RGB, uint8; gives [H, W], metres or inverse depth."""
        height, width = picture.shape[:2]
        device = next(self.model.parameters()).device
        inputs = self.processor(images=picture, input_data_format="channels_last", return_tensors="pt")
        sizes: dict[str, Any] = {"target_sizes": [(height, width)]}
        if self.model.config.model_type == "zoedepth":
            sizes["source_sizes"] = [(height, width)]  # it pads pictures, and takes the margin off again
        with torch.inference_mode():
            outputs = self.model(inputs["pixel_values"].to(device))
            depth = self.processor.post_process_depth_estimation(outputs, **sizes)[0]["predicted_depth"]
        estimated: Depth = depth.reshape(height, width).float().cpu().numpy()
        return estimated


def load_depth_network(name: str) -> DepthNetwork:
    """Load a network and its processor, in eval mode, on the GPU if there is one.

    Args:
        name: Of a model on Hugging Face, or a folder that one was saved to. A name that is in the cache
            is not looked up again.

    Raises:
        UserError: transformers is not installed, the model cannot be found or loaded whole, or it is of
            no family of ``IS_METRIC``.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("--depth-model needs transformers: pip install 'crossdistill[depth]'") from error
    transformers.utils.logging.set_verbosity_error()  # its sentences are in ours
    transformers.utils.logging.disable_progress_bar()
    if Path(name).exists() and not Path(name, "config.json").is_file():
        raise UserError(f"--depth-model {name} holds no config.json: give a folder that a model was saved to")
    try:
        try:
            network = _load(name, local_files_only=True)
        except OSError:
            network = _load(name, local_files_only=False)
    except UserError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"--depth-model {name} cannot be loaded ({cause}): give a model of Hugging Face's, for example {EXAMPLE}, "
            "or the folder that one was saved to (without internet here: hf download NAME --local-dir FOLDER elsewhere)"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.model.to(device).float().eval().requires_grad_(False)
    return network


def _load(name: str, *, local_files_only: bool) -> DepthNetwork:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

    config = AutoConfig.from_pretrained(name, local_files_only=local_files_only)
    if config.model_type not in IS_METRIC:
        raise UserError(
            f"--depth-model {name} is a network of the family {config.model_type!r}: choose one of the families "
            f"{', '.join(IS_METRIC)}, for example {EXAMPLE}"
        )
    processor = AutoImageProcessor.from_pretrained(name, local_files_only=local_files_only)
    model, report = AutoModelForDepthEstimation.from_pretrained(
        name, config=config, local_files_only=local_files_only, output_loading_info=True
    )
    absent = sorted([*report["missing_keys"], *report["mismatched_keys"]])
    if absent:
        raise UserError(
            f"--depth-model {name} is without {len(absent)} of its parameters (the first is {absent[0]}): "
            "download or save it again"
        )
    return DepthNetwork(model, processor, IS_METRIC[config.model_type](config))


@lru_cache(maxsize=1)
def _shared_network(name: str) -> DepthNetwork:
    """One per process, whatever the number of videos."""
    return load_depth_network(name)


def stored_metric(depth_metres: Depth) -> NDArray[np.uint16]:
    """Millimetres as they are stored; 0 where the network gave no distance."""
    is_distance = np.isfinite(depth_metres) & (depth_metres > 0)
    depth_mm = np.clip(np.rint(np.where(is_distance, depth_metres, 0.0) * 1000), 1, FARTHEST)
    return np.where(is_distance, depth_mm, 0).astype(np.uint16)


class InverseDepthScale:
    """Turns the inverse depth of one video's frames, in order, into what is stored; the first sets the scale."""

    def __init__(self) -> None:
        self.numerator: float | None = None
        """K of stored = K / inverse depth."""

    def __call__(self, inverse_depth: Depth) -> NDArray[np.uint16]:
        """[H, W] to 1 for the nearest up to 65535 for the farthest; 0 where the network gave no number."""
        is_number = np.isfinite(inverse_depth)
        inverse = np.where(is_number, inverse_depth, 0.0).astype(np.float64)
        if self.numerator is None:
            near = float(np.percentile(inverse, NEAR_SHARE_PERCENT))
            if near > 0:
                self.numerator = NEAR_STORED * near
        if self.numerator is None:  # nothing is near yet: the next frame may set the scale
            return np.where(is_number, FARTHEST, 0).astype(np.uint16)
        stored = np.rint(self.numerator / np.maximum(inverse, self.numerator / FARTHEST))
        return np.where(is_number, np.maximum(stored, 1), 0).astype(np.uint16)


def depth_track(recipe: Recipe) -> Callable[[Frame], tuple[Picture, int]]:
    """Make the track of one video: frames to what the depth stream's writer takes, [H, W, 1], uint16."""
    assert recipe.depth_model is not None, "checked by check_depth_source"
    network = _shared_network(recipe.depth_model)
    to_stored = stored_metric if network.is_metric else InverseDepthScale()

    def track(frame: Frame) -> tuple[Picture, int]:
        return to_stored(network.estimate(frame.rgb))[:, :, None], frame.pts

    return track


def check_depth(recipe: Recipe) -> None:
    """Raise a ``UserError`` before any work starts if the network that is asked for cannot be had."""
    if recipe.depth_model is not None:
        load_depth_network(recipe.depth_model)


def check_depth_source(recipe: Recipe, source: str) -> None:
    """Raise a ``UserError`` if depth is to be made of colour and no network is named."""
    if recipe.depth_model is None:
        raise UserError(
            "--modalities depth cannot be made: the videos come without depth, so give --depth-model with a network "
            f"that estimates it from colour, for example {EXAMPLE}, or leave depth out"
        )
