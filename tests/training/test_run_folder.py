"""Where a student's features, exports and fine-tuned versions are kept."""

import json

import pytest

from crossdistill.distillation.student import FACTS_NAME
from crossdistill.errors import UserError
from crossdistill.report.record import read_metrics
from crossdistill.training.run_folder import MetricsLog, RunFolder


def write_facts(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS_NAME).write_text("{}")


@pytest.mark.parametrize("given", ["run", "run/student"])
def test_of_student__is_the_folder_of_the_run(tmp_path, given):
    write_facts(tmp_path / "run/student")
    assert RunFolder.of_student(tmp_path / given).path == tmp_path / "run"


def test_of_student__copied_student_keeps_its_own_files(tmp_path):
    write_facts(tmp_path / "small")
    assert RunFolder.of_student(tmp_path / "small").path == tmp_path / "small"


def test_claim__leaves_a_folder_of_other_files_alone(tmp_path):
    (tmp_path / "clip.avi").touch()
    (tmp_path / "train.log").touch()
    with pytest.raises(UserError, match=r"holds other files than a run's \(first: clip\.avi\): give a new folder"):
        RunFolder(tmp_path).claim({}, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.avi", "train.log"]
    (tmp_path / "clip.avi").unlink()
    RunFolder(tmp_path).claim({}, resume=False)  # a log may lie there before
    assert RunFolder(tmp_path).config.is_file()


def test_of_student__parent_that_is_a_student_is_no_run(tmp_path):
    write_facts(tmp_path / "outer")
    write_facts(tmp_path / "outer/student")
    assert RunFolder.of_student(tmp_path / "outer/student").path == tmp_path / "outer/student"


@pytest.mark.parametrize(
    "damage", [b'{"step": 2, "lo', b"\0\0\0", b"\xff\xfe", b"[1]", b"7", b'{"loss": 1}', b'{"step": "x"}']
)
def test_metrics_log__continues_without_damaged_lines_and_without_later_ones(tmp_path, damage):
    good = [json.dumps({"step": step, "loss": 0.5}).encode() for step in (1, 2, 3)]
    folder = RunFolder(tmp_path)
    folder.metrics.write_bytes(b"\n".join([good[0], damage, good[1], good[2], damage]))
    log = MetricsLog(folder, start_step=3, tracker="none")
    log.write(3, {"loss": 0.25})
    log.close()
    assert [line["step"] for line in read_metrics(folder.metrics)] == [1, 2, 3]
    assert read_metrics(folder.metrics)[-1]["loss"] == 0.25 and len(folder.metrics.read_bytes().splitlines()) == 3
