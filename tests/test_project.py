"""What is packaged, what the documentation says, and what the project files promise hold together."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# A command line in the documentation, alone or inside another command: `tuner run --study demo`.
COMMAND = re.compile(r"\btuner (run|status|export|[a-z]+)((?: +(?:--[a-z-]+|[\w./:]+))*)")


def _prose_and_code(text):
    """Inline code and code blocks: where commands stand."""
    blocks = re.findall(r"^(?: {4}.*\n?)+|```.*?```", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])


def _names(text):
    """Requirement names in lower case, as pip compares them."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;~! ]", text, maxsplit=1)[0]).lower()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """A wheel built from a copy of what the repository tracks, intermediate files beside it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", ".work", "*.egg-info")
    for package in ("pipeline", "tuner", "dashboards", "studies", "tests", "docs", "docker"):
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    work = source / "studies" / "demo" / ".work"
    work.mkdir()
    (work / "huge.npy").write_bytes(b"0")
    (work / "intermediate.py").write_text("")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)],
        check=True,
        capture_output=True,
    )
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"pipeline", "tuner", "dashboards", "studies"}


def test_the_wheel_holds_every_module(wheel):
    for package in ("pipeline", "tuner", "dashboards"):
        modules = {
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / package).rglob("*.py")
            if "__pycache__" not in file.parts
        }
        assert modules <= wheel
        assert f"{package}/py.typed" in wheel
    templates = ROOT / "dashboards" / "templates"
    assert {file.relative_to(ROOT).as_posix() for file in templates.iterdir()} <= wheel


def test_the_wheel_holds_what_the_demo_needs_and_no_intermediate_files(wheel):
    demo = ROOT / "studies" / "demo"
    if not (demo / "study.yaml").exists():
        pytest.skip("the demo study is not built")
    wanted = [demo / "study.yaml", demo / "questions.jsonl", *(demo / "videos").glob("*")]
    wanted += [
        file for folder in ("model", "siglip") for file in (demo / folder).rglob("*") if file.is_file()
    ]
    assert {file.relative_to(ROOT).as_posix() for file in wanted} <= wheel
    assert not [name for name in wheel if ".work" in name]


@pytest.mark.quick
def test_every_requirement_has_an_exact_pin():
    pins = {_names(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    assert {_names(item) for item in wanted} - pins == set()


@pytest.mark.quick
def test_constraints_name_no_host_and_no_build():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines


@pytest.mark.quick
@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_internal_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in [
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            ], target


def test_the_documentation_builds_as_a_site_without_a_broken_link(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        tmp_path / "site",
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page.parent.name for page in (tmp_path / "site").glob("*/index.html")}
    assert {path.stem for path in DOCS if path.parent.name == "docs"} <= pages


@pytest.mark.quick
@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_commands_in_the_documentation_exist(document):
    import typer

    from tuner.cli.main import app

    commands = typer.main.get_command(app).commands
    for name, arguments in COMMAND.findall(_prose_and_code(document.read_text())):
        assert name in commands, f"tuner {name}"
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", arguments)) <= known


@pytest.mark.quick
def test_every_option_of_run_is_documented_or_helped():
    from typer.main import get_command

    from tuner.cli.main import app

    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            assert parameter.help or parameter.name == "help", f"tuner {name} {parameter.opts}"


@pytest.mark.quick
def test_the_documented_knobs_are_the_codes():
    from pipeline.methods import AdaTP, knobs

    table = (ROOT / "docs" / "method.md").read_text()
    for name, knob in knobs(AdaTP).items():
        (row,) = re.findall(rf"^\| `{name}` \|(.+)\|$", table, flags=re.MULTILINE)
        searched, default, source, _ = (cell.strip() for cell in row.split("|"))
        assert float(default) == knob.default
        assert source == knob.source
        assert name == "gamma_cap" or searched.startswith(f"{knob.low:g} to {knob.high:g}")


@pytest.mark.quick
def test_every_key_of_a_study_is_documented():
    from tuner.study.schema import QuestionKeys, SearchKeys, SplitKeys, StudyKeys

    text = (ROOT / "docs" / "study-format.md").read_text()
    keys = {*StudyKeys.model_fields, *QuestionKeys.model_fields} - {"split", "search"}
    keys |= {f"split.{name}" for name in SplitKeys.model_fields}
    keys |= {f"search.{name}" for name in SearchKeys.model_fields}
    assert [key for key in keys if f"`{key}`" not in text] == []


@pytest.mark.quick
def test_every_key_of_best_json_is_documented():
    from dataclasses import fields

    from tuner.export.best_file import Best

    text = (ROOT / "docs" / "production.md").read_text()
    assert [field.name for field in fields(Best) if f"`{field.name}`" not in text] == []


@pytest.mark.quick
def test_the_study_in_the_documentation_is_one():
    from tuner.study.schema import QuestionKeys, StudyKeys

    text = (ROOT / "docs" / "study-format.md").read_text()
    (study,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    StudyKeys.model_validate(yaml.safe_load(study))
    (question,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    QuestionKeys.model_validate_json(question)


@pytest.mark.quick
def test_make_targets_in_the_documentation_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in DOCS:
        used = re.findall(r"`make ([a-z-]+)`|^ {4}make ([a-z-]+)", document.read_text(), flags=re.MULTILINE)
        assert {name for pair in used for name in pair if name} <= targets


@pytest.mark.quick
def test_the_picture_of_the_house_shows_every_room_in_the_order_of_its_imports():
    picture = (ROOT / "docs" / "design.md").read_text().split("```")[1]
    drawn = re.findall(r"^  ((?:tuner\.)?\w+) +[|+]", picture, re.MULTILINE)
    rooms = [room for room in drawn if room.startswith("tuner.")]
    assert sorted(rooms) == sorted(
        f"tuner.{path.stem}"
        for path in (ROOT / "tuner").iterdir()
        if path.stem not in ("__init__", "py", "__pycache__")
    )
    assert [room for room in drawn if room not in rooms] == ["dashboards", "pipeline"]
    # The import linter holds the code to these layers; rooms of one layer are separated by a colon.
    (layers,) = (
        contract["layers"]
        for contract in PROJECT["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == ["tuner"]
    )
    assert rooms == [f"tuner.{room}" for layer in layers for room in layer.split(" : ")]


@pytest.mark.quick
def test_the_console_script_is_the_entry_point():
    assert PROJECT["project"]["scripts"] == {"tuner": "tuner.cli.entry:main"}
    assert PROJECT["project"]["name"] == "adatp-tuner"


@pytest.mark.quick
def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


@pytest.mark.quick
def test_shell_and_make_files_parse():
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for target in ("demo", "test", "test-cluster", "audit", "check", "demo-model", "soak", "bench", "clean"):
        finished = subprocess.run(
            ["make", "-n", "-C", str(ROOT), target], check=True, capture_output=True, text=True
        )
        assert finished.stdout
