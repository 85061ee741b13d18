"""Students as models of transformers. Importing this module registers ``model_type`` ``crossdistill``.

    import crossdistill.export.hf_model
    model = transformers.AutoModel.from_pretrained("runs/…/export-hf")
    model(clips).embeddings

The folder holds no code: the registry of this package builds the network.

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

from crossdistill.encoders import is_from_file
from crossdistill.errors import UserError
from crossdistill.export.metadata import INPUT, ExportMetadata
from crossdistill.export.network import build_encoder

MODEL_TYPE = "crossdistill"


class CrossDistillConfig(PretrainedConfig):
    """Configuration of a ``CrossDistillModel``: ``ExportMetadata.to_json`` and ``Encoder.config`` of the student."""

    model_type = MODEL_TYPE

    def __init__(
        self, crossdistill: dict[str, Any] | None = None, encoder_config: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.crossdistill = crossdistill
        self.encoder_config = encoder_config
        super().__init__(**options)


@dataclass
class CrossDistillOutput(ModelOutput):
    """Output of a ``CrossDistillModel``."""

    embeddings: Tensor | None = None
    """[B, D]."""
    logits: Tensor | None = None
    """[B, N]; None without a classifier."""


class CrossDistillModel(PreTrainedModel):
    """A trained student, with its classifier if it has one."""

    config_class = CrossDistillConfig
    base_model_prefix = "student"
    main_input_name = INPUT

    def __init__(self, config: CrossDistillConfig) -> None:
        super().__init__(config)
        metadata = ExportMetadata.from_json(config.crossdistill or {})
        if is_from_file(metadata.encoder):
            raise UserError(
                f"{metadata.encoder} is a Python file, which a folder for transformers must not run: load the student "
                "with crossdistill.load_student"
            )
        # from_pretrained builds models on the meta device. Buffers that are computed and not stored need values.
        with torch.device("cpu"):
            encoder = build_encoder(metadata.encoder, metadata.view, config=config.encoder_config, bits=metadata.bits)
            self.student: nn.Module = encoder
            self.classifier = nn.Linear(encoder.embed_dim, metadata.num_classes) if metadata.num_classes else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: every weight is in the folder."""

    def forward(self, clips: Tensor, return_dict: bool | None = None) -> CrossDistillOutput | tuple[Tensor, ...]:
        """Map normalised clips [B, C, T, H, W] to embeddings [B, D] and logits [B, N]."""
        embeddings = self.student(clips)
        layer = self.classifier
        logits = None if layer is None else F.linear(embeddings, layer.weight, layer.bias)
        output = CrossDistillOutput(embeddings, logits)
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(MODEL_TYPE, CrossDistillConfig, exist_ok=True)
AutoModel.register(CrossDistillConfig, CrossDistillModel, exist_ok=True)
