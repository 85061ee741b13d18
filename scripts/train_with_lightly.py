"""Train a student of pictures with lightly-train's own distillation, to compare it with ours by the same evaluation.

lightly-train needs an environment of its own, with this package in it: ``pip install lightly-train`` brings versions of
libraries that this package does not take. Its method ``distillation`` (version 3) takes any teacher, and the loss, the
augmentation, the optimizer and the schedule stay as it has them. Both networks get the same mixed picture of
``--view-size`` pixels, the student a copy of its own size.

    python scripts/train_with_lightly.py PICTURES LIST OUT --student image_resnet18 --student-size 48 \
        --teacher image_timm:tf_efficientnet_lite2 --teacher-weights lite2.safetensors --view-size 128 --epochs 20
    crossdistill evaluate OUT --data caltech101 --protocols knn linear cluster

LIST has one ``<class>/<picture>`` per line. OUT gets ``student``, as a run of ``crossdistill train`` has it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import lightly_train
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossdistill as cd
from crossdistill.encoders.base import EncoderInfo
from crossdistill.encoders.weights import load_weights


class PictureNetwork(nn.Module):
    """An encoder as lightly-train wants it: maps of features, and their mean.

    It resizes and normalises pictures [B, 3, H, W] with values from 0 to 1 as its encoder's view says.
    """

    def __init__(self, encoder: cd.Encoder) -> None:
        super().__init__()
        # lightly-train pickles networks into its checkpoints, and what we know of published weights has functions.
        encoder.info = EncoderInfo(
            embed_dim=encoder.embed_dim, takes=encoder.takes, token_layer=encoder.info.token_layer
        )
        self.encoder = encoder
        for name in ("mean", "std"):
            self.register_buffer(name, Tensor(getattr(encoder.view, name))[:, None, None], persistent=False)

    def forward_features(self, pictures_bchw: Tensor) -> dict[str, Tensor]:
        """Return the map before pooling [B, E, H', W'] and the pooled features [B, D, 1, 1]."""
        size = (self.encoder.view.size_px,) * 2
        pictures_bchw = F.interpolate(pictures_bchw, size, mode="bilinear", antialias=True)
        pooled, tokens = self.encoder.embed_with_tokens((pictures_bchw - self.mean) / self.std)
        return {"features": tokens[:, :, 0], "pooled": pooled[:, :, None, None]}

    def forward_pool(self, output: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the pooled features [B, D, 1, 1] that ``forward_features`` computed."""
        return {"pooled_features": output["pooled"]}

    def feature_dim(self) -> int:
        """D."""
        return self.encoder.embed_dim

    def get_model(self) -> nn.Module:
        """Return what lightly-train stores in its checkpoints."""
        return self.encoder.body


def main() -> None:
    """Train the student and save it as a run of ``crossdistill train`` would."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("list", type=Path, help="training pictures, one path below PICTURES per line")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--student", default="image_resnet18")
    parser.add_argument("--student-size", type=int, default=64, help="side of what the student sees, in pixels")
    parser.add_argument("--teacher", default="image_timm:tf_efficientnet_lite2")
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--view-size", type=int, default=128, help="side of the view, and of what the teacher sees")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="32-true", help="as lightly-train names it, for example bf16-mixed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    teacher = cd.create_encoder(given.teacher, size_px=given.view_size)
    load_weights(teacher, given.teacher_weights)
    teacher.to(memory_format=torch.channels_last)  # the same features in half of the time
    student = cd.create_encoder(given.student, size_px=given.student_size)
    files = [str(given.pictures / line) for line in given.list.read_text(encoding="utf-8").split("\n") if line]
    started = time.perf_counter()
    lightly_train.pretrain(
        out=str(given.out / "lightly"),
        data=files,
        model=PictureNetwork(student),
        method="distillation",
        method_args={"teacher": PictureNetwork(teacher.requires_grad_(False).eval())},
        epochs=given.epochs,
        batch_size=given.batch_size,
        num_workers=given.workers,
        seed=given.seed,
        precision=given.precision,
        loggers={"tensorboard": None},
        # Each network normalises by itself.
        transform_args={
            "image_size": (given.view_size, given.view_size),
            "normalize": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        },
        resume_interrupted=(given.out / "lightly" / "checkpoints" / "last.ckpt").is_file(),
    )
    facts = {
        "supervised": False,
        "teacher": teacher.name,
        "objective": [f"lightly-train {lightly_train.__version__} distillation"],
        "num_clips": len(files),
        "epochs": given.epochs,
        "seconds": round(time.perf_counter() - started, 1),
    }
    cd.save_student(student, given.out / "student", facts=facts)


if __name__ == "__main__":
    main()
