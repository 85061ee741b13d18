"""Any teacher with any student: all ordered pairs of modalities."""

import itertools
import json
import shutil

import pytest
import torch
from in_process import train as main
from safetensors.torch import load_file, save_file

import crossdistill
from crossdistill.data.sampling import SampleKey
from crossdistill.encoders import create_encoder
from crossdistill.modalities import MODALITIES
from crossdistill.types import ViewSpec

TINY = {"image": "image_mobilenet_v3_small", "rgb": "rgb_tiny3d_8", "flow": "flow_tiny3d_8", "depth": "depth_tiny3d_8"}


def train(*options):
    fixed = ["--epochs", 1, "--batch-size", 8, "--bank-size", 24, "--workers", 0, "--tracker", "none", "--knn-clips", 0]
    main([str(option) for option in (*fixed, *options)])


@pytest.mark.parametrize(("teacher", "student"), list(itertools.product(TINY, TINY)))
def test_every_pair_of_modalities__trains_saves_resumes_evaluates(teacher, student, toy_folder, tmp_path):
    """Frames, stride, size, mean and dtype differ; a run resumed before its last step ends with equal weights."""
    torch.manual_seed(0)
    weights = tmp_path / "teacher.safetensors"
    save_file(create_encoder(TINY[teacher]).body.state_dict(), weights)
    views = ["--student-size", 32, "--teacher-size", 40, "--teacher-frames", 5]
    views += [] if student == "image" else ["--student-frames", 4, "--student-stride", 2]
    pair = ["--teacher", TINY[teacher], "--teacher-weights", weights, "--student", TINY[student], *views]
    options = [*pair, "--data", toy_folder, "--out", tmp_path / "run", "--checkpoint-every-steps", 3]
    train(*options, "--no-evaluate", "--keep-checkpoints")
    whole = load_file(tmp_path / "run" / "student" / "student.safetensors")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    shutil.rmtree(tmp_path / "run" / "student")
    train(*options, "--resume")
    resumed = load_file(tmp_path / "run" / "student" / "student.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    (by_role,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    assert by_role["teacher"]["encoder"] == TINY[teacher]
    distilled = by_role["student, distilled"]
    assert distilled["encoder"] == TINY[student] and distilled["num_test"] > 0 and distilled["num_unreadable"] == 0
    student_view = crossdistill.load_student(tmp_path / "run").view
    assert student_view.size_px == 32 and student_view.modality == student


def test_pairs__cover_all_modalities_of_toyactions():
    """toyactions has no skeletons; test_new_modality.py trains their pairs."""
    assert set(TINY) | {"skeleton"} == set(MODALITIES)


class Positive(torch.nn.Module):
    """Another library's network, in half precision, whose inputs are [B, T, C, H, W]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 5, dtype=torch.bfloat16))
        self.seen = None

    def forward(self, clip_btchw):
        self.seen = clip_btchw
        return clip_btchw.mean(dim=(1, 3, 4)) @ self.weight


def test_teacher__keeps_its_layout_and_dtype(toy_folder):
    view = ViewSpec("rgb", 6, 1, 24, mean=(0.5,) * 3, std=(0.25,) * 3, layout="BTCHW")
    module = Positive()
    teacher = crossdistill.wrap_encoder(module, view=view, modality="rgb", embed_dim=5)
    student = create_encoder("flow_tiny3d_8", num_frames=4, stride=2, size_px=32)
    manifest = crossdistill.Manifest.load(toy_folder)
    clips = crossdistill.PairedClips(
        crossdistill.entries_of(manifest, range(4)), student_view=student.view, teacher_views=[teacher.view]
    )
    batch = clips.read_batch([SampleKey(i, 0) for i in range(4)])
    terms = crossdistill.create_terms(["simreg"])
    distiller = crossdistill.Distiller(student=student, teachers=[teacher], objective=terms, bank_size=8)
    output = distiller(batch)
    assert module.seen.shape == (4, 6, 3, 24, 24) and module.seen.dtype == torch.bfloat16
    expected = (batch.teachers[0].values.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(module.seen.float(), expected.transpose(1, 2), atol=0.02, rtol=0.01)
    assert output.loss.isfinite()
