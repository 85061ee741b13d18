"""A run on data without labels: its results, its last table, and its report."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from urllib.parse import unquote

import pytest
import torch
from in_process import train
from safetensors.torch import save_file

from crossdistill.api import Run
from crossdistill.commands.main import main as cli
from crossdistill.data.dataset import entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.encoders import create_encoder
from crossdistill.evaluation.features import assemble, no_features
from crossdistill.evaluation.protocols.agreement import neighbour_overlap
from crossdistill.evaluation.results import read_evaluation
from crossdistill.evaluation.roles import Role
from crossdistill.evaluation.unlabelled import evaluate_unlabelled
from crossdistill.recipes import rounds
from crossdistill.recipes.data import main_dataset
from crossdistill.report import analysis, cost
from crossdistill.report.networks import find_dataset
from crossdistill.report.record import read_run
from crossdistill.training.run_folder import RunFolder
from crossdistill.training.trackers import flatten_results

ROLES = [str(Role.TEACHER), str(Role.RANDOM), str(Role.DISTILLED)]
COMMON = ["--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 32, "--epochs", 1, "--workers", 0]
COMMON += ["--tracker", "none", "--objective", "compress-1q", "simreg"]
TEACHER = ["--teacher", "rgb_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 32, "--teacher-weights"]


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory):
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(create_encoder("rgb_tiny3d_8").body.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pile(toy_folder, tmp_path_factory):
    """Toyactions without classes, splits and groups."""
    folder = tmp_path_factory.mktemp("data") / "pile"
    shutil.copytree(toy_folder, folder, ignore=shutil.ignore_patterns("depth"))
    manifest = Manifest.load(folder)
    videos = tuple(replace(video, label=None, splits={}, group=None) for video in manifest.videos[::2])
    replace(manifest, classes=(), videos=videos).save()
    return folder


@pytest.fixture(scope="module")
def run(pile, teacher_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train([*COMMON, *TEACHER, teacher_weights, "--data", pile, "--out", folder])
    return folder


def test_run__without_labels_has_the_agreement_with_the_teacher_before_and_after(run, pile):
    (by_role,) = json.loads((run / "results.json").read_text()).values()
    assert list(by_role) == ROLES
    evaluations = {role: read_evaluation(values) for role, values in by_role.items()}
    num_clips = len(Manifest.load(pile).videos)
    assert evaluations[ROLES[0]].agreement == []
    for role in ROLES[1:]:
        (pair,) = evaluations[role].agreement
        assert pair.students == (role, ROLES[0]) and pair.num_test == num_clips == evaluations[role].num_test_seen
        assert pair.overlap_interval[0] <= pair.overlap <= pair.overlap_interval[1] and pair.overlap_by_class == {}
    assert all(1 < one.spread.effective_rank < num_clips and one.spread.uniformity < 0 for one in evaluations.values())
    tracked = flatten_results(by_role)
    name = "evaluation/toyactions/student distilled/"
    assert tracked[f"{name}overlap with teacher"] == evaluations[ROLES[2]].agreement[0].overlap
    assert tracked[f"{name}uniformity"] == evaluations[ROLES[2]].spread.uniformity


def test_report__without_labels_shows_map_neighbours_agreement_and_spread(run, pile, monkeypatch):
    monkeypatch.setattr(cost, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(analysis, "NUM_ITERATIONS", 250)
    cli(["report", str(run), "--workers", "0", "--gallery", "3"])
    page = (run / "report.html").read_text()
    assert re.findall(r'<section id="([^"]+)"', page) == [
        "run", "curves", "tsne", "gallery", "agreement", "spread", "cost",
    ]  # fmt: skip
    assert 'class="unavailable"' not in page and page.count("data:image/webp;base64,") >= 3 * 7
    assert "of 10 neighbours shared with the teacher" in page and "Wang and Isola 2020" in page
    num_clips = len(Manifest.load(pile).videos)
    assert page.count('class="clip-mark') == 3 * num_clips + 4  # three maps, and the legend of four groups
    assert "of these 15 neighbours are among the teacher&#39;s 10 nearest" in page
    (by_role,) = json.loads((run / "results.json").read_text()).values()
    assert f"<b>{100 * by_role[ROLES[2]]['agreement'][0]['overlap']:.1f} %</b>" in page
    rank = by_role[ROLES[0]]["spread"]
    assert f"<td>{rank['effective_rank']:.1f} of {rank['highest_rank']}</td>" in page


def test_comparison__without_labels_has_the_agreement_of_each_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "MAX_SECONDS", 0.01)
    out, other = tmp_path / "page.html", tmp_path / "other"
    shutil.copytree(run, other)
    cli(["report", str(run), str(other), "--workers", "0", "--no-teacher", "--out", str(out)])
    (by_role,) = json.loads((run / "results.json").read_text()).values()
    (pair,), spread = by_role[ROLES[2]]["agreement"], by_role[ROLES[2]]["spread"]
    ends = "–".join(f"{100 * end:.1f}" for end in pair["overlap_interval"])
    page = out.read_text()
    assert page.count(f"<td><b>{100 * pair['overlap']:.1f} %</b><small>{ends}</small></td>") == 2
    assert page.count(f"<td><b>{spread['effective_rank']:.1f}</b><small>of {spread['highest_rank']}</small></td>") == 2
    for row in csv.DictReader(io.StringIO(unquote(re.search(r'href="data:text/csv;[^,]+,([^"]*)"', page)[1]))):
        numbers = [float(row[f"shared_neighbours{end}"]) for end in ("", " low", " high")]
        assert numbers == [pair["overlap"], *pair["overlap_interval"]]
        assert [float(row[name]) for name in ("cka", "uniformity")] == [pair["cka"], spread["uniformity"]]


def test_to_frame__without_labels_has_the_agreement_and_the_spread(run):
    frame = Run(run).to_frame()
    (by_role,) = json.loads((run / "results.json").read_text()).values()
    assert list(frame.role) == ROLES and list(frame.teacher) == ["", ROLES[0], ROLES[0]]
    assert list(frame.effective_rank) == [by_role[role]["spread"]["effective_rank"] for role in ROLES]
    assert list(frame.overlap)[1:] == [by_role[role]["agreement"][0]["overlap"] for role in ROLES[1:]]


def test_report__without_the_teacher_shows_the_stored_agreement(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(analysis, "NUM_ITERATIONS", 250)
    out = tmp_path / "page.html"
    cli(["report", str(run), "--workers", "0", "--gallery", "0", "--no-teacher", "--out", str(out)])
    assert "As computed at the end of training. the teacher was disabled by --no-teacher." in out.read_text()


@pytest.mark.slow
def test_run__from_a_cache_compares_with_the_cached_embeddings(pile, teacher_weights, tmp_path, capsys):
    cache = [*COMMON[:6], *TEACHER, teacher_weights, "--data", pile, "--workers", 0, "--augmentations", 1]
    cli(["cache", *map(str, cache), "--out", str(tmp_path / "cache")])
    capsys.readouterr()
    train([*COMMON, "--teacher-cache", tmp_path / "cache", "--data", pile, "--out", tmp_path / "run"])
    (by_role,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    assert set(by_role) == set(ROLES) and by_role[ROLES[0]]["encoder"] == "rgb_tiny3d_8"
    printed = capsys.readouterr().out
    assert "with teacher" in printed and "unrelated spaces, expected" in printed
    assert "clips without labels, neighbours in common among the 10 nearest" in printed
    assert "The trained student shares" in printed and "those that the student learned from" in printed


def test_rounds__without_labels_compare_each_student_with_its_own_teacher(run, capsys):
    results = {}
    for number in (1, 2):
        rounds._add_results(results, RunFolder(run), number)
    (by_role,) = results.values()
    first, second = (f"{ROLES[2]}, round {number}" for number in (1, 2))
    assert list(by_role) == [*ROLES[:2], first, second]
    assert [pair["students"] for pair in by_role[second]["agreement"]] == [[second, first]]
    rounds.print_comparison("pile", by_role)
    printed = capsys.readouterr().out
    assert f"with {first}" in printed and "with teacher" in printed and "top-1" not in printed


def test_labelled_set__among_several_is_evaluated_and_reported(run, pile, toy_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    content = json.loads((folder / "config.json").read_text())
    content["configuration"]["data"]["data"] = [str(pile), str(toy_folder)]
    (folder / "config.json").write_text(json.dumps(content))
    assert find_dataset(read_run(folder), None).root == toy_folder
    assert find_dataset(read_run(folder), pile).root == pile
    assert main_dataset(Run(folder).config) == toy_folder
    assert find_dataset(read_run(run), None).root == pile == main_dataset(Run(run).config)


def test_evaluate_unlabelled__keeps_common_clips_and_says_what_it_found(pile):
    generator = torch.Generator().manual_seed(0)
    manifest = Manifest.load(pile)
    entries = entries_of(manifest, range(30))
    taught = torch.randn(30, 6, generator=generator)

    def part(rows_nd, without=()):
        rows = {i: row[None] for i, row in enumerate(rows_nd) if i not in without}
        return assemble(rows, entries, {}, no_features(rows_nd.shape[1]))

    close = taught + 0.3 * torch.randn(30, 6, generator=generator)
    far = torch.randn(30, 4, generator=generator)
    embedded = dict(zip(ROLES, (part(taught, without=[4]), part(far), part(close)), strict=True))
    found = evaluate_unlabelled(embedded, dict.fromkeys(ROLES, "x"), manifest, is_test=True)
    kept = [i for i in range(30) if i != 4]
    overlap = neighbour_overlap(taught[kept], close[kept], 10).mean().item()
    assert found.by_role[ROLES[2]].agreement[0].overlap == overlap
    assert found.num_clips == 29 and found.by_role[ROLES[2]].num_test_seen == 0
    assert "Training moved the student towards the teacher" in found.sentences[0]
    assert "held out from training" in found.sentences[-1] and len(found.sentences) == 2
    embedded[ROLES[2]] = part(torch.ones(30, 6))
    said = evaluate_unlabelled(embedded, dict.fromkeys(ROLES, "x"), manifest, is_test=True).sentences
    assert "Nearly all clips have the same embedding for the student, distilled: it hardly tells them apart." in said
    few = {role: features.select([0, 1]) for role, features in embedded.items()}
    assert evaluate_unlabelled(few, dict.fromkeys(ROLES, "x"), manifest, is_test=True).by_role[ROLES[2]].agreement == []
