"""A job is defaults < YAML < command line, and a typo is answered with the near miss."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vsae import config, jobs
from vsae.cli import train_type


@dataclass(frozen=True)
class Inner:
    """Nested."""

    rate: float = 0.5
    size: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class Outer:
    """A job."""

    out: Path
    names: tuple[str, ...] = ("a",)
    inner: Inner = field(default_factory=Inner)


def parse(tmp_path, text, *arguments):
    (tmp_path / "job.yaml").write_text(text)
    return config.parse(Outer, ["--config", str(tmp_path / "job.yaml"), *arguments], "test")


def test_command_line_beats_yaml_beats_defaults(tmp_path):
    job = parse(tmp_path, "out: here\nnames: [x, y]\ninner: {rate: 2}\n", "--inner.rate", "3", "--names", "z")
    assert job == Outer(Path("here"), ("z",), Inner(3.0))
    assert parse(tmp_path, "inner: {rate: 2, size: [3, 4]}\n", "--out", "there") == Outer(
        Path("there"), inner=Inner(2.0, (3, 4))
    )


def test_a_field_given_nowhere_is_asked_for(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, "names: [x]\n")
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("out: x\nnmaes: [x]\n", r"unknown field 'nmaes': did you mean 'names'\?"),
        ("out: x\ninner: {rat: 1}\n", r"inner has an unknown field 'rat': did you mean 'rate'\?"),
        ("out: x\ninner: {rate: fast}\n", r"inner: rate: .*valid number.*'fast'"),
        ("- out\n", "holds a list, not fields"),
        ("out: [\n", "is not YAML"),
    ],
)
def test_what_a_yaml_file_gets_wrong_is_named(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(tmp_path, text)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nmaes", "x"], r"no option '--nmaes': did you mean '--names'\?"),
        (["--out", "x", "--inner.rat=1"], r"no option '--inner\.rat': did you mean '--inner\.rate'\?"),
        (["--out", "x", "--zzz"], r"no option '--zzz': test --help lists them"),
    ],
)
def test_an_option_that_does_not_exist_is_answered_with_the_near_miss(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.parse(Outer, arguments, "test")


def test_every_option_of_every_job_is_known(capsys):
    """What tyro lists in its help is what we take for an option."""
    for job in (train_type(["--recipe", "ra_topk"]), jobs.Extract, jobs.Explore, jobs.Convert, Outer):
        with pytest.raises(SystemExit):
            config.parse(job, ["--help"], "test")
        told = re.findall(r"--[a-z][\w.-]*\w", re.sub(r"[│╭╰─\n ]+", " ", capsys.readouterr().out))
        assert set(told) - {"--config", "--help"} <= set(config.options(job))


def test_a_models_options_are_a_mapping_in_yaml_and_words_on_the_command_line(tmp_path, capsys):
    given = ["--data", "x", "--model.family", "llm", "--model.name", "y", "--sites", "a", "--out", "z"]
    told = ["--model.options", "length=64", "chat=true", "prompt=What is it: a cat?"]
    assert config.parse(jobs.Extract, [*given, *told], "test").model.options == {
        "length": 64,
        "chat": True,
        "prompt": "What is it: a cat?",
    }
    assert config.parse(jobs.Extract, given, "test").model.options == {}
    (tmp_path / "job.yaml").write_text(
        "model: {family: llm, name: y, options: {length: 8}}\ndata: x\nsites: [a]\nout: z\n"
    )
    in_file = ["--config", str(tmp_path / "job.yaml")]
    assert config.parse(jobs.Extract, in_file, "test").model.options == {"length": 8}
    assert config.parse(jobs.Extract, [*in_file, "--model.options", "length=9"], "test").model.options == {"length": 9}
    with pytest.raises(SystemExit):
        config.parse(jobs.Extract, [*given, "--model.options", "length"], "test")
    assert "write name=value" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_config_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file .*nowhere.yaml"):
        config.parse(Outer, ["--config", str(tmp_path / "nowhere.yaml")], "test")


def test_the_recipe_decides_which_options_there_are(tmp_path):
    job = config.parse(train_type(["--recipe", "topk"]), ["--out", "x", "--recipe", "topk", "--sae.k", "7"], "test")
    assert (job.sae.name, job.sae.k) == ("topk", 7)
    (tmp_path / "job.yaml").write_text("recipe: topk\nsae: {n_latents: 64, k: 3}\nout: x\n")
    arguments = ["--config", str(tmp_path / "job.yaml"), "--training.tokens", "1000"]
    job = config.parse(train_type(arguments), arguments, "test")
    assert (job.sae.n_latents, job.sae.k, job.training.tokens) == (64, 3, 1000)
    with pytest.raises(ValueError, match="no recipe 'topkk': did you mean 'topk'"):
        train_type(["--recipe", "topkk"])
