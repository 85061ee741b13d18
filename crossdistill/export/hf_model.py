"""Students as models of transformers: importing this module makes ``AutoModel`` know ``model_type`` ``crossdistill``.

    import crossdistill.export.hf_model
    model = transformers.AutoModel.from_pretrained("runs/…/export-hf")
    model(clips).embeddings

The folder holds no code; the network is built by this package's registry.

Shapes: B batch, C channels, T frames, H height, W width, D features, N classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from crossdistill.encoders import create_encoder, is_from_file
from crossdistill.errors import UserError
from crossdistill.export.description import INPUT, Description
from crossdistill.quantization.quantize import parse_bit_widths, quantize

MODEL_TYPE = "crossdistill"


class CrossDistillConfig(PretrainedConfig):
    """Which network it is and what it wants to see.

    Args:
        crossdistill: ``Description.to_json``.
        encoder_config: ``Encoder.config``, of networks whose name does not say everything.
        options: The library's own.
    """

    model_type = MODEL_TYPE

    def __init__(
        self, crossdistill: dict[str, Any] | None = None, encoder_config: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.crossdistill = crossdistill
        self.encoder_config = encoder_config
        super().__init__(**options)


@dataclass
class CrossDistillOutput(ModelOutput):
    """What the model gives."""

    embeddings: Tensor | None = None
    """[B, D]."""
    logits: Tensor | None = None
    """[B, N]; None of a student without a classifier."""


class CrossDistillModel(PreTrainedModel):
    """A trained student, and the classifier that it learned labels with.

    Args:
        config: Of its folder.
    """

    config_class = CrossDistillConfig
    base_model_prefix = "student"
    main_input_name = INPUT

    def __init__(self, config: CrossDistillConfig) -> None:
        super().__init__(config)
        description = Description.from_json(config.crossdistill or {})
        if is_from_file(description.encoder):
            raise UserError(f"{description.encoder} is a Python file, which a model's folder must not run")
        view = description.view
        # On the CPU, whatever transformers has made the default: tensors that are computed and not stored have values.
        with torch.device("cpu"):
            encoder = create_encoder(
                description.encoder,
                num_frames=view.num_frames,
                stride=view.stride,
                size_px=view.size_px,
                config=config.encoder_config,
            )
            encoder.view = view
            if description.quantize is not None:
                quantize(encoder, parse_bit_widths(description.quantize))
            self.student: nn.Module = encoder
            self.classifier = nn.Linear(encoder.embed_dim, description.num_classes) if description.num_classes else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every weight is in the folder."""

    def forward(self, clips: Tensor, return_dict: bool | None = None) -> CrossDistillOutput | tuple[Tensor, ...]:
        """Normalised clips [B, C, T, H, W] to embeddings [B, D] and logits [B, N]."""
        embeddings = self.student(clips)
        layer = self.classifier
        logits = None if layer is None else F.linear(embeddings, layer.weight, layer.bias)
        output = CrossDistillOutput(embeddings, logits)
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(MODEL_TYPE, CrossDistillConfig, exist_ok=True)
AutoModel.register(CrossDistillConfig, CrossDistillModel, exist_ok=True)
