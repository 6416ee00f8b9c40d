"""The Hugging Face hub: SAEs fetched by name, runs published with a model card."""

from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

from vsae import about, interop
from vsae.run import RUN, SAELENS, SELF_CHECK, WEIGHTS, Run
from vsae.sae import SAE
from vsae.tables import ATOMS

CARD = Path(__file__).with_name("card.md")


def pretrained(
    name: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    **options: Any,
) -> SAE:
    """The SAE in a local file or directory, or in a repository of the hub: a run of ours, or any format that `vsae.interop` reads.

    Raises FileNotFoundError or ValueError with a sentence where there is none, or none that can be read.
    """
    path = located(name, subfolder, revision)
    if (path / RUN).is_file():
        return Run.load(path, device).sae
    return interop.read(path, **options).sae.to(device)


def located(name: str | Path, subfolder: str | None = None, revision: str | None = None) -> Path:
    """The local path, after a download where `name` is a repository: only of the subfolder (or file), or of the files at the top."""
    if Path(name).exists():
        return Path(name) / (subfolder or "")
    try:
        if subfolder is None:
            wanted = [file for file in HfApi().list_repo_files(str(name), revision=revision) if "/" not in file]
        else:
            wanted = [subfolder, f"{subfolder}/*"]
        folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # what huggingface_hub raises: no such name, no access, no network
        raise FileNotFoundError(
            f"{name} is neither a local path nor a repository that can be reached ({first_line(error)})."
        ) from error
    return folder / (subfolder or "")


def push(
    run: Run, repo_id: str, subfolder: str | None = None, private: bool = False, message: str = "Add an SAE"
) -> str:
    """Upload a run (weights, self-check, descriptions, a model card; no checkpoints, evaluations or pages) and return its address.

    The card stands at the top of the repository only where the run does. Its licence is left to you.
    """
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    folder = f"{subfolder}/" if subfolder else ""
    files = [run.path / name for name in (WEIGHTS, SELF_CHECK, RUN, SAELENS, ATOMS)]
    operations = [CommitOperationAdd(f"{folder}{file.name}", file) for file in files if file.is_file()]
    operations.append(CommitOperationAdd(f"{folder}README.md", card(run, repo_id, subfolder).encode()))
    api.create_commit(repo_id, operations, commit_message=message)
    return f"https://huggingface.co/{repo_id}" + (f"/tree/main/{subfolder}" if subfolder else "")


def card(run: Run, repo_id: str, subfolder: str | None = None) -> str:
    """README.md of a run: what it is, its numbers with their floors, how to load it."""
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False).from_string(
        CARD.read_text("utf-8")
    )
    return template.render(
        title=about.title(run),
        lines=about.lines(run),
        facts=about.facts(run),
        model=hub_name(run),
        sae=run.sae,
        parts=[type(part).__name__ for part in (run.sae.encoder, run.sae.sparsifier, run.sae.dictionary)],
        capabilities=run.sae.capabilities._asdict(),
        repo_id=repo_id,
        subfolder=subfolder,
        saelens=(run.path / SAELENS).is_file(),
        imported=run.meta.get("imported"),
    )


def hub_name(run: Run) -> str | None:
    """The model's name, where it looks like one of the hub's: an owner and a name, and no path."""
    name = str(run.fingerprint.get("model", {}).get("name", ""))
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists() else None


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
