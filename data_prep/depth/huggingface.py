"""Networks of Hugging Face's transformers that estimate depth from one colour picture.

torch and transformers are imported when a network is loaded, because most datasets do not need them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from crossdistill.data.streams import Picture
from crossdistill.errors import UserError
from data_prep.depth.coding import EstimatedDepth

EXAMPLE_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"

# Family of networks to a function that tells from the configuration whether the output is metres or inverse depth.
IS_METRIC: dict[str, Callable[[Any], bool]] = {
    "depth_anything": lambda config: config.depth_estimation_type == "metric",
    "depth_pro": lambda config: True,
    # The heads of DINOv2, which are trained on metres, project their features; those of MiDaS do not.
    "dpt": lambda config: bool(config.add_projection),
    "glpn": lambda config: True,
    "zoedepth": lambda config: True,
}


@dataclass(frozen=True)
class DepthNetwork:
    """A network and the processor that prepares its input."""

    model: Any
    processor: Any
    is_metric: bool
    """Whether the output is metres. If false, it is inverse depth of unknown scale."""

    def estimate(self, picture: Picture) -> EstimatedDepth:
        """Estimate the depth [H, W], metres or inverse depth, of a picture [H, W, 3], RGB, uint8."""
        import torch

        height, width = picture.shape[:2]
        device = next(self.model.parameters()).device
        inputs = self.processor(images=picture, input_data_format="channels_last", return_tensors="pt")
        sizes: dict[str, Any] = {"target_sizes": [(height, width)]}
        if self.model.config.model_type == "zoedepth":
            sizes["source_sizes"] = [(height, width)]  # its processor pads pictures and needs this to crop the output
        with torch.inference_mode():
            outputs = self.model(inputs["pixel_values"].to(device))
            depth = self.processor.post_process_depth_estimation(outputs, **sizes)[0]["predicted_depth"]
        estimated: EstimatedDepth = depth.reshape(height, width).float().cpu().numpy()
        return estimated


def load_depth_network(name: str) -> DepthNetwork:
    """Load a network and its processor, in eval mode, on the GPU if there is one.

    Args:
        name: Model name on Hugging Face, or the folder of a saved model. A model in the local cache is loaded without
            internet.

    Raises:
        UserError: transformers is missing, the model does not exist or is incomplete, or its family is not in
            ``IS_METRIC``.
    """
    import torch

    try:
        import transformers
    except ImportError as error:
        raise UserError("--depth-model needs transformers: pip install 'crossdistill[depth]'") from error
    transformers.utils.logging.set_verbosity_error()  # the errors below quote what it would log
    transformers.utils.logging.disable_progress_bar()
    if Path(name).exists() and not Path(name, "config.json").is_file():
        raise UserError(f"--depth-model {name} has no config.json: give the folder of a saved model")
    try:
        try:
            network = _load(name, local_files_only=True)
        except OSError:
            network = _load(name, local_files_only=False)
    except UserError:  # a ValueError too
        raise
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"--depth-model {name} cannot be loaded ({cause}): give a model name on Hugging Face, for example "
            f"{EXAMPLE_MODEL}, or the folder of a saved model (without internet here, run "
            "hf download NAME --local-dir FOLDER on another machine)"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.model.to(device).float().eval().requires_grad_(False)
    return network


def _load(name: str, *, local_files_only: bool) -> DepthNetwork:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

    options: dict[str, Any] = {"local_files_only": local_files_only, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(name, **options)
    if config.model_type not in IS_METRIC:
        raise UserError(
            f"--depth-model {name} belongs to the family {config.model_type!r}: choose one of the families "
            f"{', '.join(IS_METRIC)}, for example {EXAMPLE_MODEL}"
        )
    processor = AutoImageProcessor.from_pretrained(name, **options)
    model, report = AutoModelForDepthEstimation.from_pretrained(
        name,
        config=config,
        use_safetensors=True,  # the library's other format can hold code
        output_loading_info=True,
        **options,
    )
    absent = sorted([*report["missing_keys"], *report["mismatched_keys"]])
    if absent:  # transformers would fill them with random values
        lack = f"{len(absent)} of its parameters (the first is {absent[0]})"
        raise UserError(f"--depth-model {name} lacks {lack}: download or save it again")
    return DepthNetwork(model, processor, IS_METRIC[config.model_type](config))
