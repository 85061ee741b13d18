"""Videos of several datasets without one object for each."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossdistill.data.entries import Entries, entries_of, keys_of, names_of, root_of, video_rows_of
from crossdistill.data.manifest import Manifest, Video


@pytest.fixture
def manifests(tmp_path):
    """Two datasets, one on disk and one in memory."""

    def make(name, num_videos):
        statuses = ["ok", "skipped", "repaired"]
        videos = [Video(f"{name}{i}", i % 3 or None, status=statuses[i % 3]) for i in range(num_videos)]
        (tmp_path / name).mkdir()
        return Manifest(tmp_path / name, name, ("x", "y", "z"), videos)

    first, second = make("a", 7), make("b", 5)
    first.save()
    return Manifest.load(first.root), second


def test_entries__are_those_of_a_list(manifests):
    positions = [[6, 0, 3], [4, 4, 1]]
    first, second = (entries_of(manifest, chosen) for manifest, chosen in zip(manifests, positions, strict=True))
    entries = first + second
    expected = [
        (manifest.root, manifest.videos[i])
        for manifest, chosen in zip(manifests, positions, strict=True)
        for i in chosen
    ]
    assert [(entry.root, entry.video) for entry in entries] == expected
    assert [entry.label for entry in entries] == entries.labels.tolist()
    assert [-1 if video.label is None else video.label for _, video in expected] == entries.labels.tolist()
    assert entries.is_usable.tolist() == [video.is_usable for _, video in expected]
    assert entries.keys() == [f"{root}/{video.name}" for root, video in expected] == keys_of(list(entries))
    assert entries.names() == [video.name for _, video in expected] == names_of(list(entries))
    for of_roots in (entries, list(entries)):
        assert [root_of(of_roots, i) for i in range(len(entries))] == [root for root, _ in expected]
    assert list(entries.rows()) == [video.to_json() for _, video in expected] == list(video_rows_of(list(entries)))
    assert [entry.key for entry in entries[::-2]] == entries.keys()[::-2]
    assert entries.at([5, 0]).keys() == [entries.keys()[5], entries.keys()[0]]
    assert entries.at(entries.is_usable).keys() == [entry.key for entry in entries if entry.video.is_usable]
    assert entries[-1].key == entries.keys()[-1]
    with pytest.raises(IndexError):
        entries[6]


@pytest.mark.parametrize(("number", "chosen"), [(0, []), (1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (9, list(range(7)))])
def test_entries__spread_evenly(manifests, number, chosen):
    entries = entries_of(manifests[0], range(7)).spread(number)
    assert [entry.video.name for entry in entries] == [f"a{i}" for i in chosen]


def test_entries__of_nothing(manifests):
    nothing = Entries()
    assert len(nothing) == 0 and nothing.keys() == [] and nothing.labels.dtype == np.int64
    assert len(nothing.spread(3)) == 0 and list(nothing + nothing) == []
    assert (nothing + entries_of(manifests[1], [2])).keys() == [f"{manifests[1].root}/b2"]


def test_entries__pickle_without_their_videos(tmp_path):
    videos = [Video(f"video number {i}", reason="x" * 100) for i in range(1000)]
    Manifest(tmp_path, "many", (), videos).save()
    entries = entries_of(Manifest.load(tmp_path), range(1000))
    content = pickle.dumps(entries)
    assert len(content) < 1000 * 10 + 2000
    assert pickle.loads(content).keys() == entries.keys()
    moved = replace(Manifest.load(tmp_path), root=Path("elsewhere"))
    assert entries_of(moved, [0])[0].key == "elsewhere/video number 0"
