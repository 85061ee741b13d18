"""``--teacher-sharding`` with two processes: the same embeddings from about half the memory."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from test_processes import PAIR, command, finish, losses, start

from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.recipes.config import from_keywords

SCRIPT = """
import copy, json, sys
import torch
from torch import distributed
from crossdistill.distillation.teachers import FrozenTeacher, ShardedTeacher
from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.types import PairedBatch
distributed.init_process_group("gloo")
rank, rows = distributed.get_rank(), {}
for name, view in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    encoder = create_encoder(name, **view)
    whole = FrozenTeacher(copy.deepcopy(encoder), Execution.choose(encoder, layout="no"))
    execution = Execution.choose(encoder, layout="no", is_placed=False)
    sharded = ShardedTeacher(encoder, execution)
    torch.manual_seed(rank)
    shape = encoder.view
    clips = torch.randn(2, 3, shape.num_frames, shape.size_px, shape.size_px)
    batch = PairedBatch(clips, (clips,), sample_ids=torch.arange(2), labels=torch.zeros(2, dtype=torch.int64))
    own = torch.equal(sharded.embed(batch)["features"], whole.embed(batch)["features"])
    again = sharded.embed(batch, with_tokens=True), whole.embed(batch, with_tokens=True)
    tokens = all(torch.equal(again[0][key], value) for key, value in again[1].items())
    held = sum(value.to_local().untyped_storage().nbytes() for value in encoder.parameters())
    full = sum(value.untyped_storage().nbytes() for value in whole.encoder.parameters())
    rows[name] = [own and tokens, held / full, sharded.identity == whole.identity, not sharded.networks]
open(f"{sys.argv[2]}-{rank}.json", "w").write(json.dumps(rows))
distributed.destroy_process_group()
"""
NETWORKS = {
    "rgb_r3d18": {"num_frames": 4, "size_px": 32},
    "image_timm:vit_tiny_patch16_224": {"size_px": 32},
}


def test_sharded_teacher__embeds_the_same_from_half_the_memory(tmp_path):
    script = tmp_path / "shard.py"
    script.write_text(SCRIPT)
    launcher = [part for part in command(processes=2, script=script) if not part.startswith("--student")]
    launcher = launcher[: launcher.index(str(script)) + 1]
    finish(start([*launcher, json.dumps(NETWORKS), str(tmp_path / "rows")]))
    for rank in range(2):
        rows = json.loads((tmp_path / f"rows-{rank}.json").read_text())
        assert rows.keys() == NETWORKS.keys()
        for is_equal, share, same_identity, has_no_network in rows.values():
            assert is_equal and same_identity and has_no_network
            assert share == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_train__with_a_sharded_teacher_learns_the_same(tmp_path, toy_folder, teacher_file):
    options = [*PAIR, "--teacher-weights", teacher_file, "--data", toy_folder, "--epochs", 2, "--batch-size", 4]
    options += ["--objective", "compress-2q", "token-matching", "smooth-l1", "--channels-last", "no"]
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    finish(start(command(*options, "--out", whole, processes=2)))
    more = ["--teacher-sharding", "--evaluate"]
    output = finish(start(command(*options, *more, "--out", sharded, processes=2)))
    assert "a sharded teacher is not evaluated" in output
    student = "student/student.safetensors"
    assert (whole / student).read_bytes() == (sharded / student).read_bytes()
    assert losses(whole) == losses(sharded)
    assert (sharded / "results.json").is_file()


@pytest.mark.slow
def test_proxy__is_sharded_and_not_evaluated(tmp_path, toy_folder, teacher_file):
    options = [*PAIR, "--teacher-weights", teacher_file, "--data", toy_folder, "--epochs", 1, "--batch-size", 4]
    options += ["--proxy", "flow_tiny3d_16", "--proxy-frames", 4, "--proxy-size", 32, "--objective", "simreg"]
    output = finish(start(command(*options, "--teacher-sharding", "--evaluate", "--out", tmp_path, processes=2)))
    assert "a sharded teacher is not evaluated" in output
    (by_role,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert list(by_role) == ["student, random", "student, distilled"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": True}, "does not go together with --compile"),
        ({"standardize": "phi-s"}, "does not go together with --standardize"),
        ({"teacher": "self"}, "this run has none that runs"),
    ],
)
def test_refused__together_with_other_options(changes, message):
    from in_process import check_configuration

    keywords = {"teacher": "rgb_r3d10", "student": "flow_r3d10", "data": "x", "teacher_sharding": True, **changes}
    keywords["teacher_weights"] = "auto" if changes.get("teacher") == "self" else "x"
    with pytest.raises(UserError, match=message):
        check_configuration(from_keywords(**keywords))


def test_refused__with_one_process():
    from crossdistill.encoders.sharding import shard

    encoder = create_encoder("rgb_tiny3d_8")
    with pytest.raises(UserError, match="among several processes, and there is one: start more with torchrun"):
        shard(encoder, Execution.choose(encoder).device)
