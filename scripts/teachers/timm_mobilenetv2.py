"""An encoder of your own: timm's MobileNetV2 for the weights of TensorFlow's checkpoint (1001 classes).

train.py --teacher scripts/teachers/timm_mobilenetv2.py:mobilenetv2_100 --teacher-weights FILE ...
"""

from __future__ import annotations

import timm

import crossdistill


def mobilenetv2_100() -> crossdistill.Encoder:
    """Build MobileNetV2 1.0 with TensorFlow's padding, which maps single frames to 1280 features."""
    body = timm.create_model("mobilenetv2_100", num_classes=0, pad_type="same")
    view = crossdistill.ViewSpec("image", 1, 1, 160, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return crossdistill.wrap_encoder(
        body, name="image_mobilenetv2_100", view=view, embed_dim=1280, classifier="classifier."
    )
