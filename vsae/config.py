"""Jobs as dataclasses: one a command, filled from `--config FILE.yaml`, every field overridable on the command line.

Reading goes defaults < YAML < command line. tyro makes the command line from the dataclass; pydantic checks what the YAML holds.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tyro
import yaml

Job = TypeVar("Job")


def parse(job: type[Job], arguments: Sequence[str], prog: str) -> Job:
    """The job that the arguments ask for. Raises ValueError with a sentence for an unknown option or a config file that does not fit."""
    arguments = list(arguments)
    config = take_option(arguments, "--config")
    refuse_unknown(arguments, [*options(job), "--config", "--help"], prog)
    default = from_mapping(job, read_yaml(config), str(config)) if config else None
    if not arguments and default is None and required(job):
        arguments = ["--help"]
    return tyro.cli(
        job,
        args=arguments,
        default=default if default is not None else tyro.MISSING_NONPROP,
        prog=prog,
        description=f"{job.__doc__}\n\nEvery option can also stand in a YAML file: --config FILE.yaml",
    )


def options(job: type, prefix: str = "--") -> Iterator[str]:
    """The command line's names of the fields of a job, and of the dataclasses in it."""
    types = typing.get_type_hints(job, include_extras=True)
    for field in dataclasses.fields(job):
        bare, name = strip_annotation(types[field.name]), field.name.replace("_", "-")
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(bare):
            yield from options(typing.cast(type, bare), f"{prefix}{name}.")
        elif bare is bool:
            yield f"{prefix}no-{name}"


def refuse_unknown(arguments: Sequence[str], known: list[str], prog: str) -> None:
    """Raises ValueError naming the first option that does not exist, and the nearest that does."""
    for argument in arguments:
        name = argument.split("=", 1)[0].replace("_", "-")
        if name.startswith("--") and name not in known and not name.startswith("--tyro-"):
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"{prog} --help lists them."
            raise ValueError(f"there is no option '{argument.split('=', 1)[0]}': {hint}")


def take_option(arguments: list[str], name: str) -> str | None:
    """Remove `name VALUE` or `name=VALUE` from the arguments and return VALUE."""
    for at, argument in enumerate(arguments):
        if argument == name:
            if at + 1 == len(arguments):
                raise ValueError(f"{name} needs a value after it.")
            value = arguments[at + 1]
            del arguments[at : at + 2]
            return value
        if argument.startswith(f"{name}="):
            del arguments[at]
            return argument.split("=", 1)[1]
    return None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Top-level mapping of a YAML file. Raises FileNotFoundError or ValueError with a sentence."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no config file {path}: give the path of a YAML file.")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content or {}, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not fields: write 'name: value' lines.")
    return content or {}


def from_mapping(job: type[Job], content: dict[str, Any], where: str) -> Job:
    """A job with the fields given; those that are required and not given stay open for the command line.

    Raises ValueError that names the field, and the nearest real one for a typo.
    """
    fields = {field.name: field for field in dataclasses.fields(job)}  # type: ignore[arg-type]
    types = typing.get_type_hints(job, include_extras=True)
    if unknown := [name for name in content if name not in fields]:
        raise ValueError(f"{where} has an unknown field '{unknown[0]}'{near(str(unknown[0]), fields)}")
    values = {}
    for name, field in fields.items():
        if name in content:
            values[name] = converted(types[name], content[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[name] = tyro.MISSING
    return job(**values)


def converted(annotation: Any, value: Any, where: str) -> Any:
    """`value` as the annotation says. Raises ValueError naming the place."""
    bare = strip_annotation(annotation)
    if dataclasses.is_dataclass(bare) and isinstance(value, dict):
        return from_mapping(typing.cast(type, bare), value, where)
    try:
        return pydantic.TypeAdapter(bare).validate_python(value)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {error.errors()[0]['msg'].lower()}, got {value!r}.") from error


def near(name: str, known: typing.Iterable[str]) -> str:
    """'; did you mean 'x'?', or all that is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean '{close[0]}'?" if close else f": it takes {', '.join(known)}."


def required(job: type) -> bool:
    return any(
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(job)
    )


def strip_annotation(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
