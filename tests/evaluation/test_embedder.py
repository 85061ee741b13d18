"""The embedder: modes, views and dtypes of one batch, and the walk over a dataset with several networks."""

from dataclasses import replace

import torch

from crossdistill.data.dataset import PairedClips, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.embedder import EmbeddedBatches, Embedder, batches_of


def make_embedder(name, *, seed=0, teacher=None):
    torch.manual_seed(seed)
    encoder = create_encoder(name, num_frames=3, stride=1, size_px=32)
    execution = Execution.choose(encoder, device=torch.device("cpu"), precision="fp32", layout="no")
    return Embedder(encoder, execution, teacher)


def open_clips(folder, positions, student, teacher):
    entries = entries_of(Manifest.load(folder), positions)
    return PairedClips(entries, student_view=student.encoder.view, teacher_views=[teacher.encoder.view])


def test_embedder__runs_in_eval_mode_without_gradients_and_restores_the_flag(toy_folder):
    embedder = make_embedder("rgb_tiny3d_8")
    clips = open_clips(toy_folder, range(3), embedder, embedder)
    view = clips.read_batch([SampleKey(i, 0) for i in range(3)]).student
    embedder.encoder.eval()
    expected = embedder(view)
    buffers = {name: value.clone() for name, value in embedder.encoder.named_buffers()}
    embedder.encoder.train()
    assert torch.equal(embedder(view), expected) and not embedder(view).requires_grad
    assert embedder.encoder.training
    assert all(torch.equal(value, buffers[name]) for name, value in embedder.encoder.named_buffers())


def test_embedded_batches__give_each_network_its_own_view(toy_folder):
    student, teacher = make_embedder("flow_tiny3d_8"), make_embedder("rgb_tiny3d_8", seed=1, teacher=0)
    clips = open_clips(toy_folder, range(5), student, teacher)
    batches = batches_of([SampleKey(i, epoch=0) for i in range(5)], 2)
    walk = EmbeddedBatches(clips, batches, [student, teacher], num_workers=0)
    found = list(walk)
    assert [batch.sample_ids.tolist() for batch, _ in found] == [[0, 1], [2, 3], [4]]
    for batch, (of_student, of_teacher) in found:
        assert torch.equal(of_student, student(batch.student)) and torch.equal(of_teacher, teacher(batch.teachers[0]))
        assert of_student.dtype == of_teacher.dtype == torch.float32
    assert walk.unreadable == {}


def test_embedded_batches__name_unreadable_videos_and_keep_empty_batches(toy_folder):
    student = make_embedder("rgb_tiny3d_8")
    first, broken, last = entries_of(Manifest.load(toy_folder), range(3))
    broken = replace(broken, video=replace(broken.video, status="skipped", reason="lost"))
    clips = PairedClips([first, broken, last], student_view=student.encoder.view)
    walk = EmbeddedBatches(clips, batches_of([SampleKey(i, epoch=0) for i in range(3)], 1), [student], num_workers=0)
    sizes = [len(features) for _, (features,) in walk]
    assert sizes == [1, 0, 1]
    assert list(walk.unreadable) == [broken.key] and "lost" in walk.unreadable[broken.key]
