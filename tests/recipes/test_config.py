"""Configuration: strict, complete, and what the command line says wins."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.distiller import Distiller
from crossdistill.encoders import create_encoder
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.errors import UserError
from crossdistill.recipes.checks import check_configuration, terms_of
from crossdistill.recipes.config import from_dict, from_keywords, load_yaml, parse, several, to_dict
from crossdistill.recipes.config_files import config_names
from crossdistill.recipes.context import Batches, BatchParts
from crossdistill.recipes.identity import own_teacher_config
from crossdistill.recipes.rounds import round_config
from crossdistill.recipes.sizes import fit_to_data
from crossdistill.recipes.tasks import create_plan
from crossdistill.recipes.teachers import teacher_options, teacher_sources
from crossdistill.training.run_folder import RunFolder


def check(config):
    check_configuration(config, teacher_sources(config))


FOLDER = Path(__file__).parents[2] / "configs"
ROWS = sorted(path for path in (FOLDER / "compress").glob("*.yaml") if path.stem != "recipe")  # of the CompRess paper
CONFIGS = [*sorted(FOLDER.glob("*.yaml")), *ROWS]


def test_defaults__are_the_papers_but_for_objective_and_crops():
    config = parse(["--data", "x"])
    assert config.objective.temperature is None and config.objective.bank_size is None
    assert config.objective.objective == ("compress-1q", "smooth-l1:5") and config.objective.ema_momentum == 0.999
    optimization = config.optimization
    assert (optimization.lr, optimization.momentum, optimization.weight_decay) == (0.01, 0.9, 1e-4)
    assert (optimization.epochs, optimization.batch_size, optimization.optimizer) == (130, None, "sgd")
    assert [round(130 * share) for share in optimization.lr_milestones] == [90, 120]
    assert config.data.crop_area_min == 0.2


def test_files__have_the_crops_and_the_run_of_their_papers():
    """Facts of the authors' repositories UMBCvision/CompRess and UMBCvision/ISD (train_isd_plus.py, ResNet-50)."""
    folder = Path(__file__).parents[2] / "configs"
    for name in ("moco_to_alexnet_1q", "moco_to_alexnet_2q"):
        config = parse(["--config", str(folder / "compress" / f"{name}.yaml"), "--data", "x"])
        assert config.data.crop_area_min == 0.08 and config.objective.temperature == 0.04
    isd = parse(["--config", str(folder / "isd.yaml"), "--data", "x"])
    objective, optimization = isd.objective, isd.optimization
    assert (objective.ema_momentum, objective.teacher_temperature, objective.temperature) == (0.99, 0.01, 0.1)
    assert (optimization.lr, optimization.epochs, optimization.schedule, optimization.optimizer) == (
        *(0.05, 200, "cosine", "sgd"),
    )
    assert isd.data.crop_area_min == 0.2 and objective.bank_size == 128_000 and optimization.batch_size == 256


def test_no_data__takes_the_toyactions_preset_below_options():
    config = parse(["--teacher", "rgb_r3d50", "--student", "flow_r3d18", "--lr", "0.5"])
    assert config.data.data == () and config.optimization.lr == 0.5
    assert config.objective.bank_size < 10_000 and config.optimization.schedule == "cosine"


def test_file_below_options_above_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("pair: {student: flow_r3d18}\noptimization: {lr: 0.3, epochs: 7}\ndata: {data: [a, b]}\n")
    config = parse(["--config", str(path), "--lr", "0.4"])
    assert (config.pair.student, config.optimization.lr, config.optimization.epochs) == ("flow_r3d18", 0.4, 7)
    assert config.data.data == (Path("a"), Path("b"))
    assert parse([f"--config={path}"]).optimization.lr == 0.3


def test_yaml_round_trip():
    config = parse(["--data", "x", "--mirror", "no", "--lr-milestones", "0.5", "0.75"])
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config))), source="file") == config
    assert from_dict(to_dict(config), source="dict") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimization": {"lrr": 1}}, "'optimization.lrr'.*did you mean 'optimization.lr'"),
        ({"optimisation": {"lr": 1}}, "'optimisation'.*did you mean 'optimization'"),
        ({"optimization": {"lr": -1}}, "optimization.lr is -1"),
        ({"optimization": {"optimizer": "adam"}}, "optimization.optimizer is 'adam'.*sgd"),
        ({"data": {"max_unreadable": 2}}, "data.max_unreadable is 2"),
    ],
)
def test_wrong_values__name_their_path(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(values, source="run.yaml")


def test_wrong_files(tmp_path):
    with pytest.raises(UserError, match="no configuration file"):
        parse(["--config", str(tmp_path / "absent.yaml")])
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_yaml(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="holds a list"):
        load_yaml(tmp_path / "list.yaml")
    with pytest.raises(UserError, match="--config was given without a file"):
        parse(["--config"])


def test_recipes__are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {f"compress/{path.stem}" for path in ROWS} < set(config_names()) and "compress/recipe" not in config_names()
    assert [name for name in config_names() if "/" not in name] == [path.stem for path in CONFIGS if path not in ROWS]
    assert parse(["--config", "compress/moco_to_resnet18_2q", "--data", "x"]).pair.student == "image_resnet18"
    with pytest.raises(UserError, match=r"unknown configuration 'iso': .*did you mean 'isd'"):
        parse(["--config", "iso"])
    assert from_keywords(config="isd", data="x", shots=5) == parse(["--config", "isd", "--data", "x", "--shots", "5"])
    (tmp_path / "isd").write_text("pair: {student: rgb_r3d10}")  # a file of that name comes first
    assert parse(["--config", "isd", "--data", "x"]).pair.student == "rgb_r3d10"


def test_packages__of_the_wheel_are_all_folders_with_code():
    root = FOLDER.parent
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 cannot read pyproject.toml")
    import tomllib

    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = [path for package in ("crossdistill", "data_prep") for path in (root / package).rglob("*.py")]
    found = {".".join(path.parent.relative_to(root).parts) for path in files}
    assert listed == sorted({*found, "crossdistill.configs"})


def test_unknown_option__gets_a_suggestion():
    with pytest.raises(UserError, match=r"unrecognized options: --bank-sze, 3; did you mean --bank-size\?"):
        parse(["--bank-sze", "3"])


def test_wrong_option_value__is_one_sentence():
    with pytest.raises(UserError, match=r"^--bank-size is 0: input should be greater"):
        parse(["--bank-size", "0"])


def test_check_configuration__builds_a_custom_network_with_values(tmp_path):
    """Some networks read values while they are built (rates of stochastic depth), which the meta device lacks."""
    (tmp_path / "mine.py").write_text(
        "import torch, crossdistill\n"
        "def make():\n"
        "    view = crossdistill.ViewSpec('flow', 4, 2, 32, mean=(0.0, 0.0), std=(1.0, 1.0))\n"
        "    layer = torch.nn.Linear(2 * 4 * 32 * 32, int(torch.linspace(0, 7, 3)[-1].item()))\n"
        "    body = torch.nn.Sequential(torch.nn.Flatten(), layer)\n"
        "    return crossdistill.wrap_encoder(body, name='flow_mine', view=view, embed_dim=7)\n"
    )
    check(parse(["--student", "flow_r3d10", "--teacher", f"{tmp_path}/mine.py:make", "--teacher-weights", "own"]))


def test_check_configuration__own_weights_are_for_networks_of_ones_own():
    with pytest.raises(UserError, match=r"--teacher-weights own is for .* not for rgb_r3d10"):
        check(parse(["--student", "flow_r3d10", "--teacher", "rgb_r3d10", "--teacher-weights", "own"]))


def test_check_configuration__shots_need_a_live_teacher():
    shots = ["--objective", "cross-entropy", "simreg", "--shots", "5"]
    config = parse(["--teacher-cache", "cache", "--student", "flow_r3d10", *shots])
    with pytest.raises(UserError, match="--shots 5 chooses other clips than --teacher-cache needs"):
        check_configuration(config, [SimpleNamespace(name="rgb_r3d10")])


def test_check_configuration__mixed_clips_need_a_live_teacher():
    config = parse(["--teacher-cache", "cache", "--config", "patient", "--student", "flow_r3d10"])
    with pytest.raises(UserError, match="--mix needs a teacher that sees the mixed clips, and --teacher-cache has"):
        check_configuration(config, [SimpleNamespace(name="rgb_r3d10")])


def test_own_teacher_config__another_content_of_the_data_is_another_teacher(toy_folder, tmp_path):
    config = parse(["--student", "flow_r3d10", "--teacher", "rgb_r3d10"])
    manifest = Manifest.load(toy_folder)
    video = manifest.videos[0]
    stream = replace(video.streams["rgb"], pts=video.streams["rgb"].pts + 1)
    changed = replace(video, streams={**video.streams, "rgb": stream})
    others = [manifest, Manifest.load(toy_folder), replace(manifest, videos=(changed, *manifest.videos[1:]))]
    one, same, other = (
        own_teacher_config(config, teacher_options(config)[0], tmp_path / "run", [each]).machine.out for each in others
    )
    assert one == same != other


def test_own_teacher_config__takes_the_teacher_that_version_0_1_trained(tmp_path):
    """Its folder had this name there: the digest holds every default of that version."""
    pair = ["--student", "flow_r3d10", "--teacher", "rgb_r3d10", "--objective", "simreg"]
    config = parse([*pair, "--teacher-epochs", "18"])  # that version's preset
    former = tmp_path / "teachers" / "rgb_r3d10-e604c059"
    (former / "student").mkdir(parents=True)
    for name in ("student.json", "student.safetensors"):
        (former / "student" / name).touch()
    manifest = Manifest(Path("data/toyactions"), "toyactions", ("wave",), ())
    found = own_teacher_config(config, teacher_options(config)[0], tmp_path / "run", [manifest])
    assert found.machine.out == former


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_in_configs__loads_and_builds(path):
    values = load_yaml(path)
    values["pair"] = {"teacher_weights": "auto", **values["pair"]}
    config = from_dict(values, source=str(path))
    check(config)  # names of encoders and objective
    one_process = SimpleNamespace(num_processes=1, is_main_process=True)
    config, batches = fit_to_data(config, 10_000, RunFolder(Path("absent")), one_process)
    plan = create_plan(SimpleNamespace(config=config, batches=batches))
    assert plan.learning_rate(0, 1000, 100) > 0


def test_configs__are_there():
    assert len(ROWS) == 12 < len(CONFIGS)


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_rows_of_the_compress_paper__have_its_recipe(path):
    config = from_dict(load_yaml(path), source=str(path))
    teacher, _, rest = path.stem.partition("_to_")
    wide = {"simclr": "image_resnet50x4"}
    student, _, variant = rest.rpartition("_")
    assert config.pair.teacher == (wide.get(teacher, "image_resnet50"),)
    suffix = "_no_dropout" if student == "alexnet" else ""  # as the authors'
    assert config.pair.student == f"image_{student}{suffix}"
    objective, optimization = config.objective, config.optimization
    assert objective.objective == (f"compress-{variant}",)
    assert (objective.temperature, objective.bank_size, objective.ema_momentum) == (0.04, 128_000, 0.999)
    assert (optimization.epochs, optimization.batch_size, optimization.lr) == (130, 256, 0.01)
    assert (optimization.optimizer, optimization.momentum, optimization.weight_decay) == ("sgd", 0.9, 0.0001)
    assert config.data.crop_area_min == 0.08
    plan = create_plan(SimpleNamespace(config=config, batches=Batches(BatchParts(1, 256), BatchParts(1, 256))))
    rates = [plan.learning_rate(epoch * 10, 1300, 10) for epoch in (0, 89, 91, 119, 121)]
    assert rates == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004])
    with torch.device("meta"), SizesOnly():  # networks of up to 375 M parameters, without their values
        encoders = [create_encoder(name, size_px=64) for name in (config.pair.student, *config.pair.teacher)]
        dim, teacher_dim = (encoder.embed_dim for encoder in encoders)
        distiller = Distiller(
            student=encoders[0],
            teachers=nn.Identity(),
            teacher_dim=teacher_dim,
            objective=terms_of(config),
            bank_size=8,
        )
    heads = [list(value.shape) for name, value in distiller.named_parameters() if ".heads." in name and value.ndim == 2]
    has_head = variant == "1q" or config.objective.adapter == "linear"  # 2q compares the student with itself
    assert heads == ([[teacher_dim, dim]] if has_head else [])
    assert (distiller.momentum_copy is not None) == (variant == "2q")


def test_load_yaml__a_file_replaces_values_of_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("optimization: {lr: 0.1, epochs: 3}\n")
    (tmp_path / "one.yaml").write_text("base: base.yaml\noptimization: {epochs: 5}\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\n")
    (tmp_path / "lost.yaml").write_text("base: nowhere.yaml\n")
    assert load_yaml(tmp_path / "one.yaml") == {"optimization": {"lr": 0.1, "epochs": 5}}
    with pytest.raises(UserError, match="which names another base"):
        load_yaml(tmp_path / "two.yaml")
    with pytest.raises(UserError, match=r"there is no configuration file .*nowhere\.yaml"):
        load_yaml(tmp_path / "lost.yaml")


def test_several__takes_one_none_and_many():
    assert [several(value) for value in (None, "a", ["a", "b"], (1,))] == [(), ("a",), ("a", "b"), (1,)]
    from_file = from_dict({"pair": {"teacher": "rgb_r3d50", "teacher_size": 32}}, source="a file").pair
    assert (from_file.teacher, from_file.teacher_size) == (("rgb_r3d50",), (32,))


@pytest.mark.parametrize(
    ("options", "num_frames"),
    [
        ([], (6,)),
        (["--teacher-weights", "FILE"], ()),
        (["--teacher-cache", "FOLDER"], ()),
    ],
)
def test_toyactions_preset__gives_a_view_to_teachers_that_are_trained_first_alone(options, num_frames):
    config = parse(["--teacher", "rgb_r3d10", "--student", "flow_r3d10", *options])
    assert config.pair.teacher_frames == num_frames and config.pair.student_frames == 6
    assert parse(["--teacher", "self", "--student", "flow_r3d10"]).pair.teacher_frames == ()


def test_round_config__gives_each_round_what_it_can_use(tmp_path):
    config = parse(
        ["--data", "x", "--student", "flow_r3d10", "--supervised", "--strong-views", "--mix", "--rounds", "2"]
    )
    first, second = (round_config(config, RunFolder(tmp_path), number) for number in (1, 2))
    assert first.pair.supervised and not first.data.strong_views and not first.objective.mix
    assert second.objective.mix
    assert second.pair.teacher == ("flow_r3d10",) and second.data.strong_views
    several = parse(["--data", "x", "--student", "a", "--teacher", "b", "c", "--teacher-drop", "0.5", "--rounds", "2"])
    drops = [round_config(several, RunFolder(tmp_path), number).objective.teacher_drop for number in (1, 2)]
    assert drops == [0.5, 0.0]


def test_keywords__are_the_options_of_the_command_line(tmp_path):
    (tmp_path / "run.yaml").write_text("optimization: {lr: 0.3, epochs: 7}\n")
    options = [
        "--teacher",
        "rgb_r3d18",
        "--student",
        "flow_r3d18",
        "--data",
        "x",
        "--bits",
        "w4a8",
        "--precision",
        "fp32",
    ]
    keywords = {"teacher": "rgb_r3d18", "student": "flow_r3d18", "data": "x", "bits": "w4a8", "precision": "fp32"}
    assert from_keywords(**keywords) == parse(options)
    assert from_keywords(config=tmp_path / "run.yaml", lr=0.4).optimization.lr == 0.4
    toyactions = {name: value for name, value in keywords.items() if name != "data"}
    assert from_keywords(**toyactions) == parse([option for option in options if option not in ("--data", "x")])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"bank_sze": 3}, "unknown keyword 'bank_sze': names like it are bank_size"),
        ({"bank_size": 0}, r"the keywords: objective\.bank_size is 0"),
        ({"teacher": ["a"], "epochs": "many"}, r"optimization\.epochs is 'many'"),
    ],
)
def test_wrong_keywords__are_one_sentence(keywords, message):
    with pytest.raises(UserError, match=message):
        from_keywords(data="x", **keywords)


def test_files_of_version_0_1__are_read_with_their_old_names(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("pair: {student: flow_r3d18, precision: w4a8}\nmachine: {mixed_precision: bf16}\ndata: {data: x}\n")
    config = parse(["--config", str(path)])
    assert (config.pair.bits, config.machine.precision) == ("w4a8", "bf16")


def test_check_configuration__a_batch_of_one_is_refused_only_where_a_head_normalises_by_it():
    options = ["--student", "rgb_tiny3d_8", "--data", "x", "--batch-size", "1"]
    check(parse([*options, "--supervised"]))
    check(parse([*options, "--teacher", "self", "--objective", "compress-2q"]))
    with pytest.raises(UserError, match="--batch-size is 1, but an MLP head has batch normalisation"):
        check(parse([*options, "--teacher", "self", "--objective", "simreg"]))
