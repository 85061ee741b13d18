"""Where a student's features, exports and fine-tuned versions are kept."""

import pytest

from crossdistill.distillation.student import FACTS_NAME
from crossdistill.errors import UserError
from crossdistill.training.run_folder import RunFolder


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
