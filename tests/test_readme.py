"""README's Python example runs as it stands, and prints what its comments say."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_python_example__prints_what_it_says(toy_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toyactions").symlink_to(toy_folder)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    statements = [line for line in code.splitlines() if line and not line.startswith("import")]
    assert len(statements) <= 12
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.split("\n")[:-1]
    promised = [line.partition("  # ")[2] for line in statements if line.startswith("print(")]
    assert printed == promised and len(promised) == 2


def test_commands__name_files_and_options_that_exist():
    root = Path(__file__).parent.parent
    for path in re.findall(r"(?:configs|scripts)/[\w/]+\.\w+", README):
        assert (root / path).is_file(), path
    modules = [root / "crossdistill" / "config.py", *sorted((root / "data_prep").glob("*.py"))]
    fields = "\n".join(module.read_text() for module in modules)
    others = {"--help", "--config", "--protocols", "--multi_gpu", "--nproc_per_node"}  # of evaluate and the launchers
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", README)) - others
    assert len(options) > 10
    for option in options:
        name = option[2:]
        assert f"    {name.replace('-', '_')}: " in fields or f'name="{name}"' in fields, option
