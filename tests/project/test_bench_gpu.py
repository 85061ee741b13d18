"""``scripts/bench_gpu.sh`` at the size of a CPU: its table, a part ended at its limit, a row that is left out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import bench_gpu  # noqa: E402


def rows_of(folder, part):
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.slow
def test_script__prints_one_table_and_keeps_rows_and_log(tmp_path):
    command = ["bash", str(ROOT / "scripts" / "bench_gpu.sh"), str(tmp_path / "out"), "--small", "--repeats", "1"]
    command += ["--parts", "loss", "knn", "--limit-scale", "20"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    table = (out / "table.md").read_text(encoding="utf-8")
    assert table in done.stdout
    measured = [row for row in rows_of(out, "loss") if "skipped" not in row]
    assert len(measured) == (4 if not torch.cuda.is_available() else 6)
    for row in measured:
        assert row["ratio"] == pytest.approx(row["loss_ms"] / row["products_ms"]) and row["ratio"] > 0
        assert f"| {row['what']} | " in table and row["what"] in (out / "log.txt").read_text(encoding="utf-8")
    assert {row["what"].split(", ")[1] for row in rows_of(out, "knn")} >= {"crossdistill", "plain product and topk"}
    assert json.loads((out / "machine.json").read_text(encoding="utf-8"))["torch"]


def test_part__is_ended_at_its_limit_and_says_so(tmp_path, capfd):
    bench_gpu.run_part("loss", ["--small"], tmp_path, limit_seconds=0.2)
    assert rows_of(tmp_path, "loss") == [{"what": "loss, rest", "skipped": "ended at its limit of 0 s"}]
    assert "| loss, rest | skipped ended at its limit" in bench_gpu.table(tmp_path, ["loss"])


def test_row__that_fails_says_why(tmp_path, capsys):
    bench = bench_gpu.Bench(bench_gpu.SMALL, torch.device("cpu"), tmp_path / "rows.jsonl", workers=0)
    with bench.or_reason("a step"):
        raise RuntimeError("out of\nmemory")
    assert rows_of(tmp_path, "rows") == [{"what": "a step", "skipped": "out of memory"}]


def test_limits__are_below_ten_minutes():
    assert bench_gpu.LIMIT_SECONDS.keys() == bench_gpu.PARTS.keys()
    assert sum(bench_gpu.LIMIT_SECONDS.values()) <= 560
