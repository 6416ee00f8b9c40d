"""Folders that hold to the job that began them, of this version or of one whose jobs had fewer fields."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from vsae.files import read_json, write_json
from vsae.held import differing, hold_to


@dataclass(frozen=True)
class Model:
    name: str
    options: dict[str, str] = field(default_factory=dict)
    size: int | None = 224


@dataclass(frozen=True)
class Job:
    out: Path
    model: Model
    run: Path | None = None
    sites: tuple[str, ...] = ("a",)
    skip: int = 0


def held(job):
    hold_to(job, "look", {name: value for name, value in asdict(job).items() if name != "out"})


def test_the_same_job_goes_on_and_another_is_refused_by_what_differs(tmp_path):
    job = Job(tmp_path / "out", Model("vit", {"padding": "left"}), Path("run"))
    held(job)
    noted = read_json(tmp_path / "out/look.json")
    assert noted == {
        "model": {"name": "vit", "options": {"padding": "left"}, "size": 224},
        "run": "run",
        "sites": ["a"],
        "skip": 0,
    }
    held(job)
    for other, said in (
        (replace(job, skip=1, sites=("a", "b")), "sites, skip"),
        (replace(job, run=None), "run"),
        (replace(job, model=Model("vit", {"padding": "right"}, None)), r"model\.options\.padding, model\.size"),
        (replace(job, model=Model("vit")), r"model\.options\.padding"),
    ):
        with pytest.raises(ValueError, match=rf"holds another look; what differs: {said}\. Choose another --out"):
            held(other)
    assert read_json(tmp_path / "out/look.json") == noted


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"skip": 1}, "skip"),
        ({"run": Path("run")}, "run"),
        ({"sites": ("b",)}, "sites"),
        ({"model": Model("vit", size=None)}, r"model\.size"),
        ({"model": Model("vit", {"padding": "left"})}, r"model\.options\.padding"),
    ],
)
def test_a_field_that_an_older_version_did_not_have_was_its_default(tmp_path, job, said):
    """The older note knows the model's name only: each of the others goes on with its default, and with nothing else."""
    write_json(tmp_path / "look.json", {"model": {"name": "vit"}})
    usual = Job(tmp_path, Model("vit"))
    held(usual)
    with pytest.raises(ValueError, match=rf"what differs: {said}\."):
        held(replace(usual, **job))
    with pytest.raises(ValueError, match=r"what differs: model\.name\."):
        held(replace(usual, model=Model("clip")))


def test_a_field_without_a_default_or_that_is_gone_differs():
    assert differing({"a": 1}, {"a": 1, "b": 2}, {}) == {"b": (None, 2)}
    assert differing({"a": 1, "b": 2}, {"a": 1}, {"b": 2}) == {"b": (2, None)}
    assert differing({"a": 1}, {"a": 1}, {"b": 2}) == {}  # a default of what is not held
