"""Datasets of still pictures: layouts, shards, lists, damaged files, and what is said about wrong input."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from picture_files import corners, encode, write_file, write_picture, write_shard
from PIL import Image

from crossdistill.data.manifest import Manifest
from crossdistill.data.pictures import read_picture
from crossdistill.data.stores import locate
from crossdistill.errors import UserError
from data_prep import verify
from data_prep.datasets import folder, image_list, imagenet, images
from data_prep.inspect import InspectOptions, inspect_dataset
from data_prep.merge import MergeOptions, merge_parts
from data_prep.pipeline import jobs
from data_prep.pipeline.picture_files import find_pictures
from data_prep.pipeline.prepare import SourceVideo


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Pictures are decoded in the test's process, because a child takes seconds to start."""

    def ask(module: str, request: dict, **limits: float | None) -> dict:
        # Requests and answers are JSON, as over the pipe of a child.
        return json.loads(json.dumps(importlib.import_module(module).answer(json.loads(json.dumps(request)))))

    monkeypatch.setattr(jobs, "ask", ask)
    monkeypatch.setattr(verify, "ask", ask)


def make(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_picture(root / name, seed)
    return root


def facts(sources: list[SourceVideo]) -> dict[str, tuple[int | None, str | None]]:
    return {source.name: (source.label, source.splits.get("1")) for source in sources}


def options(root: Path, **changes: object) -> images.ImagesOptions:
    return images.ImagesOptions(pictures=root, out=root.with_name("out"), workers=1, **changes)


# images.


def test_images__by_split_and_class(tmp_path):
    root = make(tmp_path / "p", "train/cat/b/1.jpg", "train/dog/1.JPEG", "val/cat/2.png", "notes.txt")
    classes, sources = images.read_pictures(options(root))
    assert classes == ["cat", "dog"]
    assert facts(sources) == {
        "train/cat/b/1.jpg": (0, "train"),
        "train/dog/1.JPEG": (1, "train"),
        "val/cat/2.png": (0, "test"),
    }


def test_images__by_class_with_a_drawn_test_share_and_unlabelled(tmp_path):
    root = make(tmp_path / "p", *(f"{c}/{i}.jpg" for c in "ab" for i in range(5)))
    _, sources = images.read_pictures(options(root, test_share=0.2))
    assert Counter(facts(sources).values()) == {(k, p): n for k in (0, 1) for p, n in (("train", 4), ("test", 1))}
    classes, sources = images.read_pictures(options(root, unlabelled=True))
    assert not classes and set(facts(sources).values()) == {(None, None)}


def test_images__test_part_without_a_training_part(tmp_path):
    root = make(tmp_path / "p", "val/cat/1.jpg", "val/dog/1.jpg")
    with pytest.raises(UserError, match=r"p has only val and no folder train: give the folder .* or --unlabelled"):
        images.read_pictures(options(root))
    assert len(images.read_pictures(options(root, unlabelled=True))[1]) == 2
    one_class = make(tmp_path / "q", "val/1.jpg")  # a class of this name
    assert images.read_pictures(options(one_class))[0] == ["val"]


def shards(root: Path) -> Path:
    picture = encode(corners())
    for part, number in (("train", 0), ("train", 1), ("val", 0)):
        members = {f"k{number}.jpg": picture, f"k{number}.cls": b"1\n", "k.jpeg": picture, "k.json": b'{"label": 0}'}
        write_shard(root / f"set-{part}-{number:04}.tar", members)
    return root


def test_images__of_tar_shards(tmp_path):
    root = shards(tmp_path / "p")
    names = write_file(tmp_path / "classes.txt", b"cat\ndog\n")
    manifest = images.prepare(options(root, classes=names))
    assert manifest.classes == ("cat", "dog")
    assert [(video.name, video.label, video.splits["1"]) for video in manifest.videos[:2]] == [
        ("set-train-0000/k.jpeg", 0, "train"),
        ("set-train-0000/k0.jpg", 1, "train"),
    ]
    assert Counter(video.splits["1"] for video in manifest.videos) == {"train": 4, "test": 2}
    for video in manifest.videos:
        stream = video.streams["rgb"]
        assert read_picture(locate(manifest.root, stream), stream).shape == (32, 48, 3)


def test_images__of_tar_shards_take_no_part_from_the_given_folder(tmp_path):
    members = {"a.jpg": encode(corners()), "a.cls": b"0", "b.jpg": encode(corners()), "b.cls": b"1"}
    write_shard(tmp_path / "my-test" / "0001.tar", members)
    found = images.read_pictures(options(tmp_path / "my-test"))[1]
    assert {source.splits["1"] for source in found} == {"train"}


def test_images__of_tar_shards_with_hard_links(tmp_path, capsys):
    """As tar writes files that are hard links to each other: the second has no bytes of its own."""
    picture, root = encode(corners()), tmp_path / "p"
    path = write_shard(root / "0.tar", {"a.jpg": picture, "a.cls": b"0"})
    with tarfile.open(path, "a") as archive:
        for name, target in (("b.jpg", "a.jpg"), ("b.cls", "a.cls")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
        info = tarfile.TarInfo("c.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(info)
    manifest = images.prepare(options(root))
    assert [(video.name, video.label) for video in manifest.videos] == [("0/a.jpg", 0), ("0/b.jpg", 0)]
    for video in manifest.videos:
        stream = video.streams["rgb"]
        assert read_picture(locate(manifest.root, stream), stream).shape == (32, 48, 3)
    assert "1 files are no pictures and are not used (1 symbolic links or devices)" in capsys.readouterr().out
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("d.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "gone.jpg"
        archive.addfile(info)
    with pytest.raises(UserError, match=r"0\.tar cannot be read as a tar file"):
        images.read_pictures(options(root))


def test_images__resume_reindexes_only_what_changed(tmp_path, monkeypatch):
    root = make(tmp_path / "p", *(f"a/{i}.jpg" for i in range(4)))
    first = images.prepare(options(root))
    write_picture(root / "a/2.jpg", 9, width=64)
    done = []
    ask = jobs.ask
    monkeypatch.setattr(
        jobs, "ask", lambda module, request, **k: done.append(request["name"]) or ask(module, request, **k)
    )
    second = images.prepare(options(root))
    assert done == ["a/2.jpg"]
    assert [v.streams["rgb"].width_px for v in second.videos] == [48, 48, 64, 48]
    assert first.videos[0].to_json() == second.videos[0].to_json()


def test_images__short_side_writes_small_files_and_nothing_outside(tmp_path):
    root = make(tmp_path / "p", "a/1.jpg")
    write_file(root / "a/2.png", encode(Image.fromarray(corners(30, 20)), "PNG"))
    manifest = images.prepare(options(root, short_side_px=24))
    sizes = {video.name: (s.path, s.width_px, s.height_px) for video in manifest.videos for s in video.streams.values()}
    assert sizes == {"a/1.jpg": ("rgb/a/1.jpg.jpg", 36, 24), "a/2.png": ("rgb/a/2.png.jpg", 30, 20)}
    for video in manifest.videos:
        stream = video.streams["rgb"]
        picture = read_picture(locate(manifest.root, stream), stream)
        assert picture.shape == (stream.height_px, stream.width_px, 3)
    assert (root / "a/1.jpg").stat().st_size and len(list(root.rglob("*"))) == 3


def test_damaged_pictures__have_the_right_status(tmp_path):
    """200 files of ten kinds among 20 intact ones."""
    noise = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    png = encode(corners(), "PNG")
    kinds = {
        "cut": (noise[:2000], "unreadable"),
        "header": (noise[:60], "unreadable"),
        "empty": (b"", "empty"),
        "html": (b"<html>not found</html>", "unreadable"),
        "zeros": (bytes(500), "unreadable"),
        "text": (b"hello", "unreadable"),
        "png-cut": (png[:-30], "unreadable"),
        "png-broken": (png[:60] + b"\xff" * 8 + png[68:], "unreadable"),
        "tiny": (encode(Image.new("RGB", (2, 2)), "PNG"), "too small"),
        "gif-cut": (encode(Image.fromarray(corners()), "GIF")[:200], "unreadable"),
    }
    root = make(tmp_path / "p", *(f"a/ok-{i}.jpg" for i in range(20)))
    for kind, (content, _) in kinds.items():
        for i in range(20):
            write_file(root / f"a/{kind}-{i}.jpg", content + (b"" if kind == "empty" else bytes([i])))
    with pytest.raises(UserError, match="200 of 220 files are unusable"):
        images.prepare(options(root))
    manifest = Manifest.load(root.with_name("out"))
    found = Counter((v.name[2:].rsplit("-", 1)[0], v.status, v.reason.split(":")[0]) for v in manifest.videos)
    assert found == {("ok", "ok", ""): 20, **{(kind, "skipped", reason): 20 for kind, (_, reason) in kinds.items()}}


# Commands over a prepared dataset.


def test_verify__finds_changed_and_deleted_pictures(tmp_path, capsys):
    root = make(tmp_path / "p", *(f"a/{i}.jpg" for i in range(4)))
    images.prepare(options(root))
    out = root.with_name("out")
    verify.verify_dataset(verify.VerifyOptions(folder=out, workers=1))
    content = bytearray((root / "a/0.jpg").read_bytes())
    content[-40] ^= 1
    (root / "a/0.jpg").write_bytes(content)
    (root / "a/1.jpg").unlink()
    write_file(root / "a/2.jpg", b"x" * (root / "a/2.jpg").stat().st_size)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="3 files"):
        verify.verify_dataset(verify.VerifyOptions(folder=out, workers=1))
    shown = capsys.readouterr().out
    assert "0.jpg: changed" in shown and "1.jpg: missing" in shown and "2.jpg: damaged" in shown


def test_merge_of_shards__is_the_whole_run(tmp_path):
    root = make(tmp_path / "p", *(f"{c}/{i}.jpg" for c in "ab" for i in range(3)))
    whole = images.prepare(options(root))
    parts = root.with_name("parts")
    for i in (2, 1):
        images.prepare(dataclasses.replace(options(root), out=parts, shard=f"{i}/2"))
    merged = merge_parts(MergeOptions(folder=parts))
    assert [v.to_json() for v in merged.videos] == [v.to_json() for v in whole.videos]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_images__cluster_gives_the_same_manifest(engine, tmp_path):
    pytest.importorskip({"dask": "distributed"}.get(engine, engine))
    root = make(tmp_path / "p", *(f"{c}/{i}.jpg" for c in "ab" for i in range(3)))
    here = images.prepare(options(root))
    with contextlib.ExitStack() as stack:
        changes = {"engine": engine, "workers": 2}
        if engine == "dask":
            distributed = importlib.import_module("distributed")
            cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            changes = {"engine": engine, "workers": None, "address": stack.enter_context(cluster).scheduler_address}
        there = images.prepare(dataclasses.replace(options(root), out=tmp_path / "there", **changes))
    assert [v.to_json() for v in there.videos] == [v.to_json() for v in here.videos]


def test_inspect__draws_pictures_as_a_grid(tmp_path, capsys):
    root = make(tmp_path / "p", *(f"{c}/{i}.jpg" for c in "ab" for i in range(5)))
    images.prepare(options(root))
    inspect_dataset(InspectOptions(folder=root.with_name("out"), clips=8))
    shown = capsys.readouterr().out
    assert "10 usable pictures" in shown and "frames per second" not in shown
    width, height = Image.open(root.with_name("out") / "inspect.png").size
    assert width > height, "eight pictures in two rows, not one below the other"


# imagenet.


def ilsvrc(root: Path) -> Path:
    return make(
        root,
        "train/n01440764/n01440764_18.JPEG",
        "train/n01443537/n01443537_2.JPEG",
        "val/ILSVRC2012_val_00000001.JPEG",
        "val/ILSVRC2012_val_00000002.JPEG",
    )


EXPECTED_VAL = {"val/ILSVRC2012_val_00000001.JPEG": (1, "test"), "val/ILSVRC2012_val_00000002.JPEG": (0, "test")}


def devkit(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    dtype = [("ILSVRC2012_ID", object), ("WNID", object)]
    synsets = np.array([(1, "n01443537"), (2, "n01440764")], dtype=dtype).reshape(-1, 1)
    scipy.io.savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    write_file(folder / "data" / "ILSVRC2012_validation_ground_truth.txt", b"1\n2\n")
    return folder


def kaggle(folder: Path) -> Path:
    rows = [f"ILSVRC2012_val_0000000{i},{name} 1 2 3 4 " for i, name in ((2, "n01440764"), (1, "n01443537"))]
    return write_file(folder / "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *rows]).encode())


def synsets(folder: Path) -> Path:
    return write_file(folder / "synsets.txt", b"n01443537\nn01440764\n")


@pytest.mark.parametrize("annotations", [devkit, kaggle, synsets])
def test_imagenet__flat_validation_pictures(annotations, tmp_path):
    root = ilsvrc(tmp_path / "p")
    given = imagenet.ImagenetOptions(pictures=root, out=tmp_path / "out", annotations=annotations(tmp_path / "a"))
    classes, sources = imagenet.read_pictures(given)
    assert classes == ["n01440764", "n01443537"]
    assert facts(sources).items() >= EXPECTED_VAL.items()
    assert facts(sources)["train/n01443537/n01443537_2.JPEG"] == (1, "train")


def test_imagenet__the_challenges_pictures_without_a_class_are_left_out(tmp_path, capsys):
    root = ilsvrc(tmp_path / "p")
    make(root, "test/ILSVRC2012_test_00000001.JPEG")
    for kind in (devkit, kaggle):
        given = imagenet.ImagenetOptions(
            pictures=root, out=tmp_path / "out", annotations=kind(tmp_path / kind.__name__)
        )
        _, sources = imagenet.read_pictures(given)
        assert len(sources) == 4 and facts(sources).items() >= EXPECTED_VAL.items()
        assert "1 pictures of the folder test have no published class and are not used" in capsys.readouterr().out


def test_imagenet__says_which_picture_has_no_class(tmp_path):
    root = ilsvrc(tmp_path / "p")
    table = write_file(tmp_path / "table.csv", b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4\n")
    given = imagenet.ImagenetOptions(pictures=root, out=tmp_path / "out", annotations=table)
    with pytest.raises(UserError, match=r"table.csv does not have ILSVRC2012_val_00000002: give the whole file"):
        imagenet.read_pictures(given)
    make(root, "train/lost.JPEG")
    with pytest.raises(UserError, match=r"train/lost.JPEG has no class: put it into a folder by class"):
        imagenet.read_pictures(dataclasses.replace(given, annotations=kaggle(tmp_path)))
    given = imagenet.ImagenetOptions(pictures=make(tmp_path / "q", "cat/1.jpg"), out=tmp_path / "out")
    with pytest.raises(UserError, match=r"has no folder train.*type python -m data_prep images --pictures"):
        imagenet.read_pictures(given)


def test_shards__say_which_pictures_they_do_not_give(tmp_path, capsys):
    pictures = tmp_path / "s"
    pictures.mkdir()
    with tarfile.open(pictures / "a.tar", "w") as archive:
        for name in ("IMG.2020.jpg", "a.jpg", "notes.txt"):
            archive.addfile(tarfile.TarInfo(name))
    found = find_pictures(pictures, out=tmp_path / "out")
    assert [picture.name for picture in found] == ["a/a.jpg"]
    output = " ".join(capsys.readouterr().out.split())
    assert "2 files are no pictures and are not used (1 .2020.jpg, 1 .txt)" in output
    assert "1 of them are pictures with a dot in their name" in output


def test_imagenet__validation_folders_and_shards(tmp_path):
    root = make(tmp_path / "p", "train/n01440764/1.JPEG", "val/n01440764/2.JPEG")
    _, sources = imagenet.read_pictures(imagenet.ImagenetOptions(pictures=root, out=tmp_path / "out"))
    assert set(facts(sources).values()) == {(0, "train"), (0, "test")}
    given = imagenet.ImagenetOptions(pictures=shards(tmp_path / "s"), out=tmp_path / "out")
    classes, sources = imagenet.read_pictures(given)
    assert len(classes) == 1000 and Counter(s.splits["1"] for s in sources) == {"train": 4, "test": 2}


@pytest.mark.parametrize("is_packed", [False, True])
def test_imagenet__says_that_annotations_are_not_read(is_packed, tmp_path, capsys):
    root = make(tmp_path / "p", "train/n01440764/1.JPEG", "val/n01440764/2.JPEG")
    given = imagenet.ImagenetOptions(
        pictures=shards(tmp_path / "s") if is_packed else root, out=tmp_path / "out", annotations=tmp_path / "absent"
    )
    imagenet.read_pictures(given)
    expected = "is not read, because the " + ("shards hold" if is_packed else "folders give")
    assert expected in " ".join(capsys.readouterr().out.split())


# image_list.


def listed(tmp_path: Path, text: str, **changes: object) -> image_list.ImageListOptions:
    path = write_file(tmp_path / "list.csv", text.encode())
    return image_list.ImageListOptions(
        list=(path,), pictures=tmp_path / "p", out=tmp_path / "out", workers=1, **changes
    )


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg,cat,train\na/2.jpg,dog,train\na/3.jpg,cat,val\na/4.jpg\n",
        "split,extra,path,label\ntrain,x,a/1.jpg,cat\n,x,a/2.jpg,dog\nvalidation,x,a/3.jpg,cat\n,,a/4.jpg,\n",
        "Filename,Class,Set\na/1.jpg,cat,train\na/2.jpg,dog,\na/3.jpg,cat,test\na/4.jpg,,\n",
        "image,class,label,split\na/1.jpg,0,cat,train\na/2.jpg,1,dog,\na/3.jpg,0,cat,test\na/4.jpg,,,\n",
        "a/1.jpg\tcat\ttrain\r\na/2.jpg\tdog\r\n\r\na/3.jpg\tcat\ttest\r\na/4.jpg\r\n",
        "a/1.jpg cat train\na/2.jpg dog\na/3.jpg cat test\na/4.jpg\n",
        "a/1.jpg;cat;train\na/2.jpg;dog\na/3.jpg;cat;test\na/4.jpg\n",
    ],
)
def test_image_list__columns(text, tmp_path):
    make(tmp_path / "p", *(f"a/{i}.jpg" for i in (1, 2, 3)))
    classes, sources = image_list.read_lists(listed(tmp_path, text))
    assert classes == ["cat", "dog"]
    assert facts(sources) == {
        "a/1.jpg": (0, "train"),
        "a/2.jpg": (1, "train"),
        "a/3.jpg": (0, "test"),
        "a/4.jpg": (None, None),
    }
    assert [bool(source.inputs) for source in sources] == [True, True, True, False]


def test_image_list__tabs_come_before_the_commas_of_names(tmp_path):
    make(tmp_path / "p", "a/1.jpg", "b,c.jpg")
    text = "path\tlabel\tsplit\na/1.jpg\ttench, Tinca tinca\ttrain\nb,c.jpg\tgoldfish\ttrain\n"
    classes, sources = image_list.read_lists(listed(tmp_path, text))
    assert classes == ["goldfish", "tench, Tinca tinca"]
    assert facts(sources) == {"a/1.jpg": (1, "train"), "b,c.jpg": (0, "train")}


# Wrong input.


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (
            ["train/a/1.jpg", "train/b/", "val/a/2.jpg"],
            {},
            r"the class folder .*/train/b holds no picture: move it away",
        ),
        (["a/1.jpg", "b/"], {}, r"the class folder .*/b holds no picture: move it away"),
        (["train/a/1.jpg", "test/b/2.jpg"], {}, r"test has the class 'b', which has no training picture"),
        (["1.jpg"], {}, r"1.jpg is in no class folder: move it to .*<class>/, or give --unlabelled"),
        (["a/1.mp4", "a/2.avi"], {}, r"2 videos and no picture: for videos, type python -m data_prep folder --videos"),
        (["a/1.txt"], {}, r"contain no picture: give a folder of pictures or of tar shards"),
        (["a/1.jpg"], {"test_share": 2.0}, r"--test-share 2 is out of range"),
        (["a/1.jpg"], {"short_side_px": 3}, r"--short-side 3 is invalid"),
        (["a/1.jpg"], {"classes": Path("c.txt")}, r"--classes c.txt is for tar shards"),
    ],
)
def test_images__wrong_input_is_one_sentence(files, changes, message, tmp_path):
    for name in files:
        (tmp_path / "p" / name).mkdir(parents=True) if name[-1] == "/" else write_picture(tmp_path / "p" / name)
    with pytest.raises(UserError, match=message):
        images.prepare(options(tmp_path / "p", **changes))


def test_images__wrong_shards(tmp_path):
    write_shard(tmp_path / "p" / "train.tar", {"a.jpg": encode(corners())})
    with pytest.raises(UserError, match=r"train/a.jpg in .*train.tar has no class: add a .cls file .* --unlabelled"):
        images.read_pictures(options(tmp_path / "p"))
    for part, name in (("train", b"cat"), ("val", b"dog")):
        write_shard(tmp_path / "q" / f"{part}.tar", {"a.jpg": encode(corners()), "a.cls": name})
    with pytest.raises(
        UserError, match=r"val/a.jpg in .*val.tar has the class dog, which has no training picture: add"
    ):
        images.read_pictures(options(tmp_path / "q"))
    (tmp_path / "q" / "train.tar").unlink()  # the test shards alone can be prepared
    assert facts(images.read_pictures(options(tmp_path / "q"))[1]) == {"val/a.jpg": (0, "test")}
    write_file(tmp_path / "p" / "train.tar", b"\x1f\x8b" + bytes(600))
    with pytest.raises(UserError, match=r"train.tar cannot be read as a tar file"):
        images.read_pictures(options(tmp_path / "p"))
    write_picture(tmp_path / "p" / "a.jpg")
    with pytest.raises(UserError, match=r"1 pictures, such as .*, and 1 tar shards, .*: give a folder of one kind"):
        images.read_pictures(options(tmp_path / "p"))


def test_folder__of_pictures_names_the_command(tmp_path):
    root = make(tmp_path / "p", "a/1.jpg", "a/2.jpg")
    with pytest.raises(UserError, match=r"2 pictures and no video: .* python -m data_prep images --pictures .* --out"):
        folder.read_folder(folder.FolderOptions(videos=root, out=tmp_path / "out"))
    make(root, "a/3.gif")
    with pytest.raises(UserError, match=r"3 pictures and no video"):
        folder.read_folder(folder.FolderOptions(videos=root, out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1.jpg,cat,train\na/1.jpg,cat,train\n", r"line 2 names a/1.jpg, which is also in .*line 1: remove one line"),
        ("a/8.jpg,cat\na/9.jpg,cat\n", r"contain none of the 2 pictures that .* name: expected for example .*a/8.jpg"),
        ("a/1.jpg,cat,tomorrow\n", r"line 1 has the split 'tomorrow': write train, test or val"),
        ("a/1.jpg,,train\n", r"line 1 has a split and no label"),
        ("a/1.jpg,cat,train\na/2.jpg,dog,test\n", r"the class 'dog' has test pictures and no training picture"),
        ("a/1.mp4,cat\n", r"line 1 names the video a/1.mp4: for videos, type python -m data_prep list"),
        ("cat,a/1.jpg\n", r"line 1 names 'cat', which is no picture"),
        ("a/1.jpg,cat,train,4\n", r"line 1 has 4 columns instead of path, label, split"),
        ("file,class,target\na/1.jpg,0,cat\n", r"line 1: the columns class and target may both be the label: call"),
        ("", r"list.csv names no picture"),
    ],
)
def test_image_list__wrong_input_is_one_sentence(text, message, tmp_path):
    make(tmp_path / "p", "a/1.jpg", "a/2.jpg")
    with pytest.raises(UserError, match=message):
        image_list.read_lists(listed(tmp_path, text))


def test_imagenet__wrong_input_is_one_sentence(tmp_path):
    given = imagenet.ImagenetOptions(pictures=ilsvrc(tmp_path / "p"), out=tmp_path / "out")
    with pytest.raises(UserError, match=r"is in no class folder: give the classes .* with --annotations"):
        imagenet.read_pictures(given)
    short = write_file(tmp_path / "short.txt", b"n01440764\n")
    with pytest.raises(UserError, match=r"has the classes of 1 pictures, and .* is one of 2"):
        imagenet.read_pictures(dataclasses.replace(given, annotations=short))
    numbers = devkit(tmp_path / "devkit") / "data" / "ILSVRC2012_validation_ground_truth.txt"
    with pytest.raises(UserError, match=r"ground_truth\.txt has numbers, .* give the folder of the devkit, such as"):
        imagenet.read_pictures(dataclasses.replace(given, annotations=numbers))
    empty = write_file(tmp_path / "empty.txt", b"\n")
    with pytest.raises(UserError, match=r"empty.txt has the classes of 0 pictures, and .* is one of 2"):
        imagenet.read_pictures(dataclasses.replace(given, annotations=empty))
    other = dataclasses.replace(given, pictures=make(tmp_path / "q", "train/cat/1.jpg"))
    with pytest.raises(UserError, match=r"class folder cat, and those of ImageNet .* data_prep images --pictures"):
        imagenet.read_pictures(other)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("train/n01484850/", r"the class folder .*/train/n01484850 holds no picture: move it away"),
        (
            "val/n01484850/1.JPEG",
            r"1.JPEG has the class n01484850, which has no training picture: unpack n01484850.tar",
        ),
        ("train/n01484850.tar", r"n01484850.tar is not unpacked: type for t in .*/train/n\*.tar; do .*tar -xf"),
        ("1.JPEG", r"1.JPEG has no class: put it into a folder by class"),
    ],
)
def test_imagenet__wrong_class_folders_are_one_sentence(added, message, tmp_path):
    root = make(tmp_path / "p", "train/n01440764/1.JPEG", "val/n01440764/2.JPEG")
    (root / added).mkdir() if added[-1] == "/" else write_picture(root / added)
    with pytest.raises(UserError, match=message):
        imagenet.read_pictures(imagenet.ImagenetOptions(pictures=root, out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (imagenet.TRUTH_NAME, b"1\n7\n", r"truth.txt line 2 has the class '7', which .*meta.mat lacks: unpack"),
        (imagenet.TRUTH_NAME, b"1\ncat\n", r"truth.txt line 2 has the class 'cat', which .*meta.mat lacks: unpack"),
        (imagenet.META_NAME, b"<html>", r"meta.mat does not hold the classes of ImageNet \(.*\): unpack the devkit"),
    ],
    ids=["class out of range", "no number", "no mat file"],
)
def test_imagenet__damaged_devkit_is_one_sentence(name, content, message, tmp_path):
    given = imagenet.ImagenetOptions(
        pictures=ilsvrc(tmp_path / "p"), out=tmp_path / "out", annotations=devkit(tmp_path / "a")
    )
    write_file(next(given.annotations.rglob(name)), content)
    with pytest.raises(UserError, match=message):
        imagenet.read_pictures(given)
