"""The documentation: generated pages are up to date, and the site builds without a warning and without the network."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import crossdistill
from crossdistill.evaluation.results import Evaluation, ProtocolResult
from crossdistill.objectives import OBJECTIVES
from crossdistill.recipes.config import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))
import draw_diagram  # noqa: E402
import make_reference  # noqa: E402
import make_results  # noqa: E402
import results_table  # noqa: E402

CONFIG = ROOT / "configs" / "mkdocs.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as ``make check`` builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIG)]
    done = subprocess.run([*command, "--site-dir", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


# The site.


def test_site__has_every_page(site):
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_site__loads_nothing_from_the_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*?\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*?rel=\"?(?:stylesheet|preload|icon|preconnect)\"?[^>]*", text)
        assert loaded, page
        assert not [one for one in loaded if re.search(r"(https?:)?//", one)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize(
    ("page", "complaint"),
    [("[x](nowhere.md)", "nowhere.md"), ("[x](index.md#nowhere)", "#nowhere"), ("::: crossdistill.nothing", "nothing")],
)
def test_build__fails_for_a_broken_link(tmp_path, page, complaint):
    pytest.importorskip("mkdocs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{page}\n")
    config = CONFIG.read_text(encoding="utf-8").partition("\nnav:")[0].replace("../docs", "docs")
    config = config.replace("../scripts", str(ROOT / "scripts"))
    (tmp_path / "mkdocs.yml").write_text(config.replace("../build", "build").replace("paths: [..]", f"paths: [{ROOT}]"))
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and complaint in done.stdout + done.stderr


def test_navigation__has_four_kinds_of_pages():
    nav = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"]
    assert [title for entry in nav for title in entry][1:5] == ["Tutorials", "How to", "Reference", "Explanation"]
    for entry in nav[1:5]:
        ((title, pages),) = entry.items()
        folders = {Path(page).parent.name for entry in pages for page in entry.values()}
        assert folders == {title.lower().replace(" ", "_")} or folders == {f"{title.lower()}s".rstrip("s") + "s"}


# Pages that scripts write.


@pytest.mark.parametrize("name", ["train.md", "commands.md", "data_prep.md"])
def test_reference__is_up_to_date(name):
    page = make_reference.PAGES / name
    assert page.read_text(encoding="utf-8") == make_reference.pages()[name], "run scripts/make_reference.py"


def test_reference__names_every_option_of_the_help(capsys):
    """The tables come from the dataclasses, the help from tyro: both have the same options."""
    text = "".join(make_reference.pages().values())
    for name in make_reference.COMMANDS:
        with pytest.raises(SystemExit):
            make_reference.crossdistill([name, "--help"])
        help_text = capsys.readouterr().out.partition("╭")[2]
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?= )", help_text)) - {"--help", "--config"}:
            assert f"`{option}`" in text, (name, option)


@pytest.mark.parametrize("path", make_results.outputs(), ids=lambda path: path.name)
def test_results__tables_and_plot_are_those_of_the_csv_files(path):
    assert path.read_text(encoding="utf-8") == make_results.outputs()[path], "run scripts/make_results.py"


def test_results_page__has_every_row_of_the_csv_files():
    marks = {mark[1] for page in make_results.PAGES for mark in make_results.MARK.findall(page.read_text("utf-8"))}
    uses = {f"utd_mhad {row['use']}" for row in make_results.read("utd_mhad")}
    assert marks == {"readme"} | uses | {path.stem for path in make_results.RESULTS.glob("*.csv")} - {"utd_mhad"}


def test_diagram__is_up_to_date():
    assert draw_diagram.PICTURE.read_text(encoding="utf-8") == draw_diagram.diagram(), "run scripts/draw_diagram.py"


def test_api__shows_every_public_name():
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: crossdistill\.(\w+)$", page, flags=re.MULTILINE))
    public = {name for name in crossdistill.__all__ if not name.startswith("__")}
    assert shown == {name for name in public if not isinstance(getattr(crossdistill, name), ModuleType)}
    for name in public - shown:  # the page shows the functions of a module that is a public name
        assert f"::: crossdistill.{name}." in page
    for path in re.findall(r"^::: (crossdistill\.\w+)\.(\w+)$", page, flags=re.MULTILINE):
        assert hasattr(importlib.import_module(path[0]), path[1]), path


def test_objectives__stand_in_the_guide():
    guide = (DOCS / "how_to" / "choose_an_objective.md").read_text(encoding="utf-8")
    table = guide.partition("| objective |")[2].partition("\n\n")[0]
    assert set(
        re.findall(r"`([a-z0-9-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines() if "|" in row))
    ) == set(OBJECTIVES)


def test_guide_to_objectives__shows_lines_of_the_product():
    guide = (DOCS / "how_to" / "add_an_objective.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^`([\w/.]+)`\n\n```python\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for file, code in blocks:
        assert code.strip() in (ROOT / file).read_text(encoding="utf-8"), file


# What the results page says.


def test_results_page__counts_what_the_csv_file_holds():
    text = " ".join((DOCS / "results" / "results.md").read_text(encoding="utf-8").split())
    uses = {"Shallower", "Lower precision", "Small video model", "Across modalities"}
    rows = [row for row in make_results.read("utd_mhad") if row["use"] in uses]
    better = [sum(float(row[f"gain_{measure}"]) > 0 for row in rows) for measure in ("1nn", "linear")]
    assert (
        f"Of the {len(rows)} students that learned from one teacher of another network, {better[0]} are better than "
        f"their supervised baseline in 1-NN accuracy, and {better[1]} in linear accuracy." in text
    )


def test_csv_files__have_one_number_per_cell():
    for path in (DOCS / "results").glob("*.csv"):
        for row in make_results.read(path.stem):
            for name, cell in row.items():
                if re.search(r"1nn|linear$|cluster|_(sd|low|high)$|^(seeds|percent|low|high|sd|mean|split_\d)$", name):
                    assert re.fullmatch(r"|-?\d+(\.\d)?", cell), (path.name, name, cell)


def test_results_table__has_the_paired_interval_of_a_gain_over_people(tmp_path):
    """Hits of two seeds are averaged clip by clip, and two people are drawn: one gains nothing, one a quarter."""
    hits = {"small": ["11110000", "11111010"], "labels": ["11110000", "11110000"]}
    for run, seeds in hits.items():
        for seed, digits in enumerate(seeds):
            result = ProtocolResult("1-nn", digits.count("1") / 8, 1.0, 0.5, 8, hits=digits)
            videos, people = [f"v{i}" for i in range(8)], ["anna"] * 4 + ["ben"] * 4
            evaluation = Evaluation(
                "x", "toy", "1", 8, 8, {}, {"1-nn": result, "linear": result}, test_videos=videos, test_groups=people
            )
            role = "student, distilled" if run == "small" else "student, supervised"
            (tmp_path / f"{run}-seed{seed}").mkdir()
            content = json.dumps({"data": {role: evaluation.to_json()}})
            (tmp_path / f"{run}-seed{seed}" / "results.json").write_text(content)
    line = {"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}
    (row,) = results_table.rows_of(results_table.collect(tmp_path), {"use": [line]})
    # The second seed gains 2 of Ben's 4 clips: 1 of 8 clips as a mean of seeds; none if Anna is drawn twice.
    assert [row[f"gain_1nn{end}"] for end in ("", "_low", "_high")] == ["12.5", "0.0", "25.0"]
    row |= {"gain_linear_low": "", "gain_linear_high": ""}
    assert [make_results.interval(row, key) for key in ("1nn", "linear")] == ["0.0 to +25.0", "point estimate"]


def test_results_table__takes_mean_deviation_and_gain_over_common_seeds(tmp_path):
    runs = {
        "small-seed0": {"teacher": 0.9, "student, random": 0.1, "student, distilled": 0.5},
        "small-seed1": {"teacher": 0.9, "student, random": 0.2, "student, distilled": 0.7},
        "small-seed2": {"teacher": 0.9, "student, random": 0.3, "student, distilled": 0.9},
        "labels-seed0": {"student, supervised": 0.4},
        "labels-seed1": {"student, supervised": 0.7},
    }
    for name, roles in runs.items():
        (tmp_path / name).mkdir()
        results = {p: {"top1": None} for p in results_table.PROTOCOLS.keys() - results_table.LOW_SHOT}
        content = {
            "data": {
                role: {"encoder": "x", "results": {p: {**results[p], "top1": top1} for p in results}}
                for role, top1 in roles.items()
            }
        }
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    line = {"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}
    (row,) = results_table.rows_of(results_table.collect(tmp_path), {"use": [line]})
    assert (row["distilled_1nn"], row["distilled_1nn_sd"], row["seeds"]) == ("70.0", "20.0", "3")
    assert (row["gain_linear"], row["gain_linear_sd"]) == ("5.0", "7.1")
    assert (row["teacher_cluster_sd"], row["second_teacher_1nn"], row["untrained_1nn"]) == ("0.0", "", "20.0")
    assert list(results_table.without_empty([row])[0]) == list(make_results.read("utd_mhad")[0])


def test_results_table__compares_low_shot_with_a_network_trained_on_the_same_labels(tmp_path):
    """``evaluation.json`` holds what the reproducing script evaluates after training; it replaces ``results.json``."""
    five_shot = {"small": 0.5, "labels": 0.9, "labels-shots5": 0.3}
    for run, top1 in five_shot.items():
        role = "student, distilled" if run == "small" else "student, supervised"
        folder = tmp_path / f"{run}-seed0"
        folder.mkdir()
        before, after = ({"results": {"linear": {"top1": linear}}} for linear in (0.1, 0.6))
        after["results"]["lowshot-5"] = {"top1": top1}
        environment = {"gpus": [], "cpu": "one"}
        config = {"configuration": {"optimization": {"epochs": 7}}, "environment": environment}
        files = {"results.json": {"data": {role: before}}, "evaluation.json": after, "config.json": config}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
    line = {"student": "s", "teacher": "t", "run": "small", "baseline": "labels"}
    (row,) = results_table.without_empty(list(results_table.rows_of(results_table.collect(tmp_path), {"use": [line]})))
    assert (row["distilled_linear"], row["baseline_5shot"], row["gain_5shot"]) == ("60.0", "30.0", "20.0")
    assert (row["epochs"], row["machine"]) == ("7", "one")
    assert "distilled_1shot" not in row


def test_caltech101_script__has_a_run_for_every_row_of_its_table(tmp_path):
    (tmp_path / "train.txt").write_text("a/1.jpg\n")
    (tmp_path / "test.txt").write_text("a/2.jpg\n")
    script = [ROOT / "scripts/reproduce_caltech101.sh", tmp_path, tmp_path, tmp_path / "weights", tmp_path / "out", "0"]
    shown = subprocess.run(script, env={**os.environ, "PYTHON": "echo", "ROWS": "all"}, check=True, capture_output=True)
    trained = [line for line in shown.stdout.decode().splitlines() if "/train.py" in line]
    runs = {line.split("--out ")[1].split("-seed0")[0] for line in trained}
    uses = yaml.safe_load((ROOT / "scripts/rows_caltech101.yaml").read_text(encoding="utf-8"))
    wanted = {line[key] for lines in uses.values() for line in lines for key in ("run", "baseline")}
    assert len(runs) == len(trained)
    assert wanted <= runs
    options = {word[2:].replace("-", "_") for line in trained for word in line.split() if word.startswith("--")}
    assert options - {"resume"} <= {entry.name for kind in SECTIONS.values() for entry in dataclasses.fields(kind)}
