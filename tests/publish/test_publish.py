"""Students and caches on a stand-in for the hub: what is sent, what comes back, what the card says, and what fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, running_hub
from in_process import cache, train

from crossdistill import load_student
from crossdistill.commands.main import main as cli
from crossdistill.distillation.cache_folders import open_caches
from crossdistill.distillation.student import FACTS_NAME, save_student
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.encoders import create_encoder
from crossdistill.errors import UserError
from crossdistill.publish.card import FILL_IN
from crossdistill.publish.plain_paths import require_no_folder, without_folders
from crossdistill.publish.push import PushRequest, collect, push
from crossdistill.quantization.quantize import noise_clips
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils import hub as hub_module
from crossdistill.utils.hub import Repository, fetch, names_repository

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")

SMALL = ["--batch-size", 8, "--workers", 0, "--tracker", "none", "--knn-clips", 0, "--precision", "fp32"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running stand-in that huggingface_hub asks in this process, with the owner's token and an empty cache."""
    constants = huggingface_hub.constants
    with running_hub() as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        fetch.cache_clear()
        yield hub
        fetch.cache_clear()


@pytest.fixture(scope="module")
def run(toy_folder, teacher_file, tmp_path_factory):
    """A run with an evaluation, whose options name absolute paths."""
    out = tmp_path_factory.mktemp("runs") / "flow"
    options = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--teacher-frames", 4]
    options += ["--teacher-size", 16, "--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 16]
    train([*options, "--data", toy_folder, "--epochs", 1, *SMALL, "--out", out])
    return out


def push_run(folder, name="lab/flow", **options):
    return push(PushRequest(folder=folder, repository=Repository.parse(name), **options))


def test_push_and_load__give_equal_embeddings(hub, run):
    push_run(run)
    assert sorted(hub.files("lab/flow")) == ["README.md", "student.json", "student.safetensors"]
    original, loaded = load_student(run), load_student("lab/flow")
    clips = noise_clips(original, 3)
    with torch.no_grad():
        assert torch.equal(loaded(clips), original(clips))
    assert loaded.view == original.view


def test_push__sends_no_path_of_this_machine(hub, run, toy_folder, teacher_file):
    assert str(teacher_file) in (run / "student" / FACTS_NAME).read_text()
    push_run(run, transformers=True)
    for name, content in hub.files("lab/flow").items():
        for folder in (run.parent, toy_folder.parent, teacher_file.parent, Path.home()):
            assert str(folder).encode() not in content, name
    teachers = json.loads(hub.files("lab/flow")["student.json"])["training"]["teachers"]
    assert [teacher["weights"] for teacher in teachers] == [teacher_file.name]


def test_card__has_the_numbers_of_the_run_in_its_head_and_its_table(hub, run):
    push_run(run, license="apache-2.0")
    text = hub.files("lab/flow")["README.md"].decode()
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.license, data.pipeline_tag) == ("crossdistill", "apache-2.0", "feature-extraction")
    assert {"flow", "knowledge-distillation"} <= set(data.tags)
    (by_role,) = json.loads((run / "results.json").read_text()).values()
    results = by_role["student, distilled"]["results"]
    found = {result.metric_name.split(",")[0]: result.metric_value for result in data.eval_results}
    assert found["1-NN"] == round(100 * results["1-nn"]["top1"], 2)
    assert found["linear"] == round(100 * results["linear"]["top1"], 2)
    low, high = (100 * end for end in results["1-nn"]["intervals"]["top1"])
    assert f"| {100 * results['1-nn']['top1']:.1f} ({low:.1f}–{high:.1f}) |" in text.replace("  ", " ")
    for part in ("distilled on toyactions from rgb_r3d10_gn", "rgb_r3d10_gn", "seed | 0", "Intended use", FILL_IN):
        assert part in text


def test_card__says_that_nothing_was_measured(hub, tmp_path):
    torch.manual_seed(0)
    save_student(create_encoder("flow_tiny3d_8", num_frames=4, size_px=16), tmp_path / "alone", facts={})
    push_run(tmp_path / "alone")
    text = hub.files("lab/flow")["README.md"].decode()
    assert "The run was not evaluated." in text and f"# license: {FILL_IN}" in text
    assert huggingface_hub.ModelCard(text).data.eval_results is None


def test_card__of_the_user_is_sent_as_it_is(hub, run, tmp_path):
    (tmp_path / "edited.md").write_text("# mine\n")
    push_run(run, card=tmp_path / "edited.md")
    assert hub.files("lab/flow")["README.md"] == b"# mine\n"


def test_revision__is_a_branch_that_load_reads(hub, run, tmp_path):
    push_run(run)
    torch.manual_seed(1)
    other = create_encoder("flow_tiny3d_8", num_frames=4, size_px=16).eval()
    save_student(other, tmp_path / "other", facts={})
    push_run(tmp_path / "other", "lab/flow@v2")
    clips = noise_clips(other, 2)
    with torch.no_grad():
        assert torch.equal(load_student("lab/flow@v2")(clips), other(clips))
        assert not torch.equal(load_student("lab/flow")(clips), other(clips))


def test_offline__reads_the_cache_and_nothing_else(hub, run, monkeypatch):
    push_run(run)
    load_student("lab/flow")
    hub.requests.clear()
    fetch.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load_student("lab/flow")
    with pytest.raises(UserError, match=r"lab/other is neither a folder here nor in the hub's cache .*HF_HUB_OFFLINE"):
        load_student("lab/other")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, so nothing can be sent to lab/flow: unset it"):
        push_run(run)
    assert hub.requests == []


def test_private__needs_the_token(hub, run, monkeypatch):
    push_run(run, private=True)
    assert hub.repositories["models", "lab/flow"].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        UserError, match=r"lab/flow cannot be read, .* without a token: check the name, and that HF_TOK"
    ):
        load_student("lab/flow")
    with pytest.raises(UserError, match=r"writing to lab/flow needs an account: set HF_TOKEN, or type hf auth login"):
        push_run(run)


def test_unreachable__is_one_sentence(hub, run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"lab/flow is no folder here, and the hub \(http://127.0.0.1:9\) cannot be rea"
    ):
        load_student("lab/flow")
    with pytest.raises(UserError, match=r"the hub \(http://127.0.0.1:9\) cannot be reached"):
        push_run(run)


def test_load__tells_what_is_wrong_with_a_repository(hub, run):
    push_run(run)
    with pytest.raises(UserError, match=r"lab/flow has no revision 'v9' on the hub"):
        load_student("lab/flow@v9")
    with pytest.raises(
        UserError, match=r"lab/none cannot be read, because the hub shows no such repository: check the"
    ):
        load_student("lab/none")
    files = hub.files("lab/flow")
    del files[FACTS_NAME]
    hub.repositories["models", "lab/flow"].commits["0" * 40] = files
    hub.repositories["models", "lab/flow"].branches["main"] = "0" * 40
    with pytest.raises(UserError, match=r"lab/flow is a repository of the hub without a student \(no student.json\)"):
        load_student("lab/flow")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{run}", "flow"], "'flow' does not name a repository: give organisation/name"),
        (["{run}", "lab/a/b"], "'lab/a/b' does not name a repository"),
        (["{run}", "lab/flow@v1"], "lab/flow@v1 has a revision: give it as --revision v1"),
        (
            ["{run}", "forbidden/flow"],
            "forbidden/flow cannot be written, because the hub answers 403 (you do not belong",
        ),
        (["{started}", "lab/flow"], "has not finished, so it has no student: continue it with --resume"),
        (["{empty}", "lab/flow"], "holds neither a student (student.json) nor a teacher cache (cache.json)"),
        (["none", "lab/flow"], "there is no folder none: give a run's folder"),
        (["{run}", "lab/flow", "--card", "none.md"], "there is no file none.md: give a Markdown file as --card"),
    ],
)
def test_bad_input__is_one_sentence(hub, run, tmp_path, capsys, words, sentence):
    (tmp_path / "started" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    shutil.copy(run / "config.json", tmp_path / "started")
    places = {"run": run, "started": tmp_path / "started", "empty": tmp_path / "empty"}
    with pytest.raises(SystemExit):
        cli(["push", *(word.format(**places) for word in words)])
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
    assert not hub.repositories


def test_python_file__is_neither_sent_nor_run_unless_allowed(hub, tmp_path, monkeypatch):
    source = (Path(__file__).resolve().parents[1] / "former_version" / "network.py").read_text()
    (tmp_path / "network.py").write_text(source)
    save_student(create_encoder(f"{tmp_path}/network.py:student"), tmp_path / "own", facts={})
    with pytest.raises(UserError, match="read that file, then allow it to run"):
        push_run(tmp_path / "own")
    push_run(tmp_path / "own", allow_code=True)
    assert sorted(hub.files("lab/flow")) == ["README.md", "student.json", "student.safetensors"]
    assert "allow_code=True" in hub.files("lab/flow")["README.md"].decode()
    with pytest.raises(UserError, match=r"is built by the Python file network.py:student: read that file"):
        load_student("lab/flow")
    assert load_student("lab/flow", allow_code=True).name == "network.py:student"


def test_features__of_a_student_of_the_hub_are_kept_in_runs(hub, run, toy_folder, tmp_path):
    push_run(run)
    assert RunFolder.of_student("lab/flow") == RunFolder(Path("runs/lab--flow"))
    load_student("lab/flow")
    cached = sorted((tmp_path / "hub-cache").rglob("*"))
    cli(["evaluate", "lab/flow", "--data", str(toy_folder), "--protocols", "knn", "--workers", "0"])
    assert list(Path("runs/lab--flow/features").iterdir())
    assert sorted((tmp_path / "hub-cache").rglob("*")) == cached


def test_teacher_of_the_hub__trains_a_student_that_records_its_name(hub, toy_folder, tmp_path):
    torch.manual_seed(0)
    save_student(create_encoder("rgb_r3d10_gn", num_frames=4, size_px=16), tmp_path / "teacher", facts={})
    push_run(tmp_path / "teacher", "lab/teacher")
    shutil.rmtree(tmp_path / "teacher")
    options = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", "lab/teacher", "--student", "flow_tiny3d_8"]
    options += ["--student-frames", 4, "--student-size", 16, "--data", toy_folder, "--epochs", 1, *SMALL]
    train([*options, "--no-evaluate", "--out", tmp_path / "out"])
    training = json.loads((tmp_path / "out" / "student" / FACTS_NAME).read_text())["training"]
    assert training["teachers"][0]["weights"] == "lab/teacher"
    assert training["teachers"][0]["num_frames"] == 4


def test_cache_of_the_hub__has_equal_embeddings_and_trains(hub, toy_folder, teacher_file, tmp_path):
    student = ["--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 16]
    clips = ["--data", toy_folder, "--workers", 0, "--batch-size", 8, "--precision", "fp32"]
    teacher = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--teacher-frames", 4]
    cache([*teacher, "--teacher-size", 16, *student, *clips, "--augmentations", 1, "--out", tmp_path / "cache"])
    push_run(tmp_path / "cache", "lab/cache")
    files = hub.files("lab/cache", kind="datasets")
    assert {Path(name).suffix for name in files} == {".json", ".md", ".safetensors"}
    assert str(teacher_file.parent).encode() not in files["cache.json"]
    own, fetched = TeacherCache(tmp_path / "cache"), TeacherCache(Path("lab/cache"))
    keys = torch.tensor([[sample, 0] for sample in range(own.num_clips)])
    assert torch.equal(own.read(keys), fetched.read(keys))
    shutil.rmtree(tmp_path / "cache")
    options = ["--teacher-cache", "lab/cache", *student, "--data", toy_folder, "--epochs", 1, *SMALL]
    train([*options, "--no-evaluate", "--out", tmp_path / "out"])
    assert (tmp_path / "out" / "student" / "student.safetensors").is_file()


def test_cache_of_several_teachers__is_whole_on_the_hub(hub, toy_folder, teacher_file, tmp_path):
    student = ["--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 16]
    teachers = [
        "--teacher",
        "rgb_r3d10_gn",
        "rgb_r3d10_gn",
        "--teacher-weights",
        teacher_file,
        "--teacher-frames",
        4,
        2,
    ]
    clips = ["--data", toy_folder, "--workers", 0, "--precision", "fp32", "--teacher-size", 16, "--augmentations", 1]
    cache([*teachers, *student, *clips, "--dtype", "int8", "--out", tmp_path / "cache"])
    push_run(tmp_path / "cache", "lab/both")
    assert hub.files("lab/both", kind="datasets")["README.md"].count(b"128 features, int8") == 2
    own, fetched = open_caches(tmp_path / "cache"), open_caches(Path("lab/both"))
    keys = torch.tensor([[sample, 0] for sample in range(own[0].num_clips)])
    assert [torch.equal(a.read(keys), b.read(keys)) for a, b in zip(own, fetched, strict=True)] == [True, True]


def test_transformers__load_the_repository_in_a_process_of_their_own(hub, run, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}

    def in_process(*words):
        done = subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = in_process("-m", "crossdistill", "push", str(run), "lab/flow", "--transformers")
    assert printed.startswith(hub.url)
    clips = noise_clips(load_student(run), 2)
    torch.save(clips, tmp_path / "clips.pt")
    code = (
        "import torch, transformers\n"
        "model = transformers.AutoModel.from_pretrained('lab/flow', trust_remote_code=True)\n"
        "with torch.no_grad():\n"
        "    torch.save(model(torch.load('clips.pt')).embeddings, 'embeddings.pt')\n"
    )
    in_process("-c", code)
    with torch.no_grad():
        expected = load_student(run)(clips)
    torch.testing.assert_close(torch.load(tmp_path / "embeddings.pt"), expected, atol=1e-6, rtol=1e-6)


def test_dry_run__prints_card_and_files_and_sends_nothing(hub, run, capsys):
    cli(["push", str(run), "lab/flow", "--dry-run", "--transformers"])
    printed = capsys.readouterr().out
    assert "model-index:" in printed and "bytes  student.safetensors" in printed and "bytes  config.json" in printed
    assert not [request for request in hub.requests if request.startswith("POST")]


def test_names_repository__never_for_what_may_be_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert names_repository("lab/flow") and names_repository(Path("lab/flow@v1"))
    for path in ("runs/flow", "lab/flow.pth", "lab/flow.safetensors", "/lab/flow", "lab/a/b", "lab", "../lab", "lab/"):
        assert not names_repository(path), path
    assert not names_repository("rgb_hf:facebook/dino")


def test_without_folders__keeps_what_is_no_folder_of_this_machine():
    kept = ["data/ucf101", "rgb_r3d18", "https://huggingface.co/a/b", "1/2", "lab/teacher", "compress-1q", "n/a"]
    assert without_folders(kept) == kept
    for given, plain in [
        ("/home/me/runs/teacher", "teacher"),
        ("~/runs/teacher", "teacher"),
        ("../runs/teacher", "teacher"),
        ("rgb_hf:/models/vit", "rgb_hf:vit"),
        ("/home/me/net.py:build", "net.py:build"),
        ("/a b/c", "c"),
        (r"C:\runs\teacher", "teacher"),
    ]:
        assert without_folders(given) == plain


def test_require_no_folder__reads_headers_of_tensors(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"from": "/home/me/runs"})
    require_no_folder({"a.safetensors": tmp_path / "a.safetensors"}, [Path("/home/you"), Path("/")])
    with pytest.raises(UserError, match=r"a.safetensors names the folder /home/me of this machine: remove the path"):
        require_no_folder({"a.safetensors": tmp_path / "a.safetensors"}, [Path("/home/me")])


def test_collect__asks_no_hub(run, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "_library", None)
    contents = collect(PushRequest(folder=run, repository=Repository.parse("lab/flow")), tmp_path)
    assert contents.sizes()["student.safetensors"] == (run / "student" / "student.safetensors").stat().st_size
