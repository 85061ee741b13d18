"""The advice of a run that waits for its clips."""

import json
import shutil
import time

import pytest
import torch
from accelerate import Accelerator
from picture_files import write_picture

from crossdistill.data.dataset import Entry, PairedClips, Replay, entries_of
from crossdistill.data.decoded import DecodedVideos
from crossdistill.data.manifest import MANIFEST_NAME, Manifest, Video
from crossdistill.data.pictures import index_picture
from crossdistill.data.stores import LINK_NAME, link_text
from crossdistill.encoders import create_encoder
from crossdistill.training import loop
from crossdistill.training import monitor as monitor_module
from crossdistill.training.monitor import WAITING_LINES, Monitor
from crossdistill.training.run_folder import MetricsLog, RunFolder
from crossdistill.types import StepOutput


def monitor_of(folder, *, num_steps):
    return Monitor(
        MetricsLog(RunFolder(folder), start_step=1, tracker="none"),
        accelerator=Accelerator(cpu=True),
        batch_size=4,
        log_every_steps=1,
        start_step=0,
        num_steps=num_steps,
        steps_per_epoch=5,
        started=time.perf_counter(),
        description="training",
        remedies=["wait less", "sleep more"],
    )


def test_data_wait__is_that_of_the_process_that_waits_longest(tmp_path, monkeypatch):
    """Two processes: the other one waits for a tenth of a second longer."""
    monkeypatch.setattr(monitor_module, "largest_of_processes", lambda _, wait_us: (wait_us + 100_000,))
    monitor = monitor_of(tmp_path, num_steps=1)
    with monitor:
        for _ in monitor.watch([0]):
            time.sleep(0.2)
            monitor.add(StepOutput(loss=torch.zeros(()), terms={}))
            monitor.finish_step(1, lr=0.1, bank_fill=None)
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert 0.2 < row["data_wait"] <= 0.5


@pytest.mark.parametrize(("wait_seconds", "step_seconds", "num_sentences"), [(0.02, 0.0, 1), (0.0, 0.01, 0)])
def test_run_that_waits_for_clips__says_once_what_helps(tmp_path, capsys, wait_seconds, step_seconds, num_sentences):
    def clips():
        for _ in range(num_steps):
            time.sleep(wait_seconds)
            yield 0

    num_steps = 3 * WAITING_LINES
    monitor = monitor_of(tmp_path, num_steps=num_steps)
    with monitor:
        for step, _ in enumerate(monitor.watch(clips()), start=1):
            time.sleep(step_seconds)
            monitor.add(StepOutput(loss=torch.zeros(()), terms={}))
            monitor.finish_step(step, lr=0.1, bank_fill=None)
    assert capsys.readouterr().out.count("of its time: wait less, or sleep more") == num_sentences


@pytest.mark.parametrize("has_teacher", [False, True])
@pytest.mark.parametrize("is_kept", [False, True])
def test_advice__names_what_the_run_does_not_do_already(toy_folder, has_teacher, is_kept):
    view = create_encoder("rgb_r3d10", num_frames=4, stride=1, size_px=32).view
    clips = PairedClips(
        entries_of(Manifest.load(toy_folder), [0]),
        student_view=view,
        teacher_views=[view] if has_teacher else [],
        decoded=DecodedVideos(1 << 20) if is_kept else None,
    )
    advice = " ".join(loop._faster_reading(clips))
    assert "--workers" in advice and "--copy-size" not in advice
    assert ("--keep-decoded-gb" in advice) == (not is_kept)
    assert ("crossdistill cache" in advice) == has_teacher


def test_advice__of_pictures_is_not_to_keep_videos(tmp_path):
    picture = index_picture(write_picture(tmp_path / "a.jpg"))
    entry = Entry(tmp_path, Video("a", streams={"rgb": picture}), -1)
    clips = PairedClips([entry], student_view=create_encoder("image_resnet18", size_px=32).view)
    assert "--keep-decoded-gb" not in " ".join(loop._faster_reading(clips))


def test_advice__of_a_run_with_a_teacher_cache_is_not_to_cache_the_teacher(toy_folder):
    view = create_encoder("rgb_r3d10", num_frames=4, stride=1, size_px=32).view
    entries = entries_of(Manifest.load(toy_folder), [0])
    clips = PairedClips(entries, student_view=view, teacher_views=[view])
    cached = clips.replayed(Replay(seed=0, num_augmentations=1, unreadable={}))
    assert "crossdistill cache" in " ".join(loop._faster_reading(clips))
    assert "crossdistill cache" not in " ".join(loop._faster_reading(cached))


@pytest.mark.parametrize("is_list", [False, True])
def test_advice__of_a_linked_dataset_is_to_copy_it(toy_folder, tmp_path, is_list):
    linked = tmp_path / "linked"
    linked.mkdir()
    shutil.copy(toy_folder / MANIFEST_NAME, linked)
    (linked / LINK_NAME).write_text(link_text("s3://somewhere", max_bytes=10**9))
    entries = entries_of(Manifest.load(toy_folder), [0]) + entries_of(Manifest.load(linked), [0])
    view = create_encoder("rgb_r3d10", num_frames=4, stride=1, size_px=32).view
    clips = PairedClips(list(entries) if is_list else entries, student_view=view)
    assert "link them with a larger --copy-size" in " ".join(loop._faster_reading(clips))


def test_unreadable_videos__of_a_folder_that_was_moved_are_counted_anew(toy_folder):
    manifest = Manifest.load(toy_folder)
    clips = PairedClips(entries_of(manifest, range(4)), student_view=create_encoder("rgb_tiny3d_8").view)
    name = manifest.videos[0].name
    found = {
        f"{toy_folder}/{name}": "is damaged",
        f"/elsewhere/{name}": "is damaged",
        f"{toy_folder}2/{name}": "is gone",
    }
    assert loop._of_present_data(found, clips) == {f"{toy_folder}/{name}": "is damaged"}
