"""Who may import whom, read from the source: vsae knows no models and no evaluations, modalities knows neither of the others; the roof knows all."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
ROOF = {
    "vsae/cli.py",
    "vsae/reading.py",
    "vsae/evaluations/audits.py",
    "vsae/evaluations/dictionaries.py",
    "vsae/evaluations/enhancing.py",
    "vsae/evaluations/labels.py",
    "vsae/evaluations/models.py",
    "vsae/evaluations/masks.py",
    "vsae/evaluations/quality.py",
    "vsae/evaluations/questions.py",
    "vsae/evaluations/words.py",
    "vsae/evaluations/world.py",
    "vsae/evaluations/world_answers.py",
    "vsae/demo/__init__.py",
    "vsae/demo/page.py",
    "vsae/demo/evidence.py",
    "vsae/audit/__init__.py",
    "vsae/audit/concepts.py",
    "vsae/audit/explorer.py",
    "vsae/audit/look.py",
    "vsae/audit/names.py",
    "vsae/audit/page.py",
    "vsae/filter/__init__.py",
    "vsae/filter/scores.py",
    "vsae/filter/page.py",
    "vsae/evaluations/alignment.py",
    "vsae/steer/__init__.py",
    "vsae/steer/answers.py",
    "vsae/steer/directions.py",
    "vsae/steer/discover.py",
    "vsae/steer/images.py",
    "vsae/steer/outcome.py",
    "vsae/steer/page.py",
}
FORBIDDEN = {"vsae": {"modalities", "evals"}, "modalities": {"vsae", "evals"}, "evals": set()}


def imported(path):
    """First names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_to_their_floor(package):
    paths = {path.relative_to(HERE).as_posix(): path for path in (HERE / package).rglob("*.py")}
    wrong = {name: FORBIDDEN[package] & set(imported(path)) for name, path in paths.items() if name not in ROOF}
    assert paths and {name: found for name, found in wrong.items() if found} == {}


def test_only_the_demo_and_what_asks_about_it_know_the_microworld():
    outside = [path for package in ("vsae", "evals") for path in (HERE / package).rglob("*.py")]
    knowing = {path.relative_to(HERE).as_posix() for path in outside if "microworld" in path.read_text("utf-8")}
    assert knowing <= {
        "vsae/demo/__init__.py",
        "vsae/demo/page.py",
        "vsae/evaluations/world.py",
        "vsae/evaluations/questions.py",
    }


def test_the_roof_is_what_the_command_line_names():
    words = ast.get_docstring(ast.parse((HERE / "vsae/cli.py").read_text("utf-8")))
    assert all(name.split("/")[1] in words for name in ROOF - {"vsae/cli.py"})
    assert all({"modalities", "evals"} & set(imported(HERE / name)) for name in ROOF)
