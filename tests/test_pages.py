"""Every evaluation has a page that says what its numbers mean, their floor and their traps."""

from importlib.resources import files

import pytest

from vsae import cli
from vsae.evaluations import EVALUATIONS

PAGES = files("evals") / "pages"


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_page_has_its_three_parts(name):
    text = (PAGES / f"{name}.md").read_text()
    parts = text.split("\n## ")
    assert [part.split("\n", 1)[0] for part in parts[1:]] == ["What the number means", "Floor", "Traps"]
    assert all(len(part.split("\n", 1)[1].split()) >= 10 for part in parts[1:])


def test_no_page_is_of_nothing():
    assert {page.name for page in PAGES.iterdir()} == {f"{name}.md" for name in EVALUATIONS}


def test_the_command_prints_it(capsys):
    cli.main(["eval", "segmentation", "--about"])
    printed = capsys.readouterr().out
    assert "Segmentation alignment" in printed and "Traps" in printed
