"""Every YAML in configs/ is a job of today, and every recipe has one to begin with."""

import re
from pathlib import Path

import pytest

from vsae import audit_jobs, jobs, steer_jobs
from vsae.cli import train_type
from vsae.config import from_mapping, read_yaml
from vsae.recipes import FIXED, JOINED, RECIPES

FILES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_what_a_command_takes(path):
    content = read_yaml(path)
    command = re.search(r"vsae (audit|filter|steer|extract|train) --config", path.read_text())
    named = {"audit": audit_jobs.Audit, "filter": audit_jobs.Filter, "steer": steer_jobs.Steer}.get(
        command[1] if command else ""
    )
    job = named or (jobs.Extract if "model" in content else train_type(["--config", str(path)]))
    made = from_mapping(job, content, path.name)
    if named is None and job is not jobs.Extract:
        assert made.recipe == made.sae.name and (made.store is None) != (made.stream is None)
        joined = made.recipe in JOINED
        assert joined == ("+" in (made.site or "")), "recipes on joined rows need two sites, and only they"


def test_every_recipe_has_one():
    named = {read_yaml(path).get("recipe") for path in FILES}
    assert not {*RECIPES, *JOINED, *FIXED} - named


def test_commands_in_them_name_files_that_are_there():
    known = {path.name for path in FILES}
    for path in FILES:
        for word in path.read_text().split():
            if word.startswith("configs/"):
                assert word.removeprefix("configs/") in known, f"{path.name} speaks of {word}"


@pytest.mark.parametrize("command", ["audit", "filter", "steer"])
def test_each_job_has_one_for_the_rendered_world_and_one_for_a_hubs_models(command):
    of = [path for path in FILES if f"vsae {command} --config" in path.read_text()]
    hub = [path for path in of if path.stem != f"{command}_microworld"]
    assert len(hub) == len(of) - 1 > 0
    assert read_yaml(next(path for path in of if path not in hub))["model"]["name"].startswith("W/")
    assert not any(read_yaml(path)["model"]["name"].startswith("W/") for path in hub)
