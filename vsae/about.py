"""What a store or a run is, in words, from its own files."""

from pathlib import Path
from typing import Any

from vsae.activations import ActivationStore
from vsae.activations.fingerprint import short
from vsae.activations.manifest import MANIFEST
from vsae.run import Run


def describe(path: Path, verify: bool = False) -> str:
    """A store's or a run's description; with `verify`, after checking every byte. Raises FileNotFoundError for anything else."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no directory {path}: give a store or a run.")
    if (path / MANIFEST).is_file() or (path / "journal.jsonl").is_file():
        return store(ActivationStore.open(path, verify)) + ("\nEvery checksum agrees." if verify else "")
    return run(Run.load(path)) + ("\nWeights and self-check agree." if verify else "")


def store(opened: ActivationStore) -> str:
    """Some lines about a store."""
    manifest = opened.manifest
    data, model = manifest["data"], manifest["model"]
    lines = [
        f"{opened.path}: activations of {model['name']} (weights {weights(model)}), {manifest['dtype']}",
        f"  data     {data.get('kind', '')} {data.get('name', '')}: {opened.samples.num_rows:,} samples, {manifest['bad']['count']} bad ones left out",
    ]
    for bad in manifest["bad"]["samples"][:3]:
        lines.append(f"           bad: {bad['key']}: {bad['reason']}")
    for name in opened.sites:
        site = opened.site(name)
        kinds = ", ".join(f"{kind} {entry['count']:,}" for kind, entry in site.entry["moments"].items())
        grid = f", grid {site.grid[0]} x {site.grid[1]}" if site.grid else ""
        size = sum(shard["bytes"] for shard in site.entry["shards"]) / 2**20
        lines.append(f"  {name}: {site.n_rows:,} rows x {site.d_model} ({kinds}){grid}, {size:,.0f} MiB")
    return "\n".join([*lines, f"  digest   {opened.digest[:16]}"])


def run(opened: Run) -> str:
    """Some lines about a run."""
    numbers = ", ".join(f"{name} {value}{f' ({floor})' if floor else ''}" for name, value, floor in facts(opened))
    return "\n".join([f"{opened.path}: {title(opened)}", *(f"  {line}" for line in [*lines(opened), numbers])])


def title(opened: Run) -> str:
    sae, fingerprint = opened.sae, opened.fingerprint
    model = Path(str(fingerprint["model"].get("name", "an unnamed model"))).name
    return f"{opened.meta['recipe']['name']} SAE of {model}, {fingerprint['site']} {fingerprint['side']}: {sae.n_latents:,} latents"


def lines(opened: Run) -> list[str]:
    """How the run came about."""
    meta, fingerprint = opened.meta, opened.fingerprint
    if imported := meta.get("imported"):
        files = ", ".join(f"{name} {digest[:8]}" for name, digest in imported["files"].items())
        rows = "random rows" if imported["self_check_rows"] == "random" else "rows of a store"
        return [f"read from {imported['format']}'s files ({files}); its self-check has {rows}", *imported["notes"]]
    fields = ", ".join(f"{name} {value}" for name, value in meta["recipe"]["fields"].items())
    kinds = ", ".join(fingerprint.get("select", {}).get("kinds") or ["all kinds"])
    if skip := fingerprint.get("select", {}).get("skip"):
        kinds += f", without the first {skip} of each sample"
    return [
        f"recipe: {meta['recipe']['name']} ({fields})",
        f"trained on {short(fingerprint)}; tokens: {kinds}; {meta['training']['tokens']:,} of them in {meta['training']['steps']:,} steps",
        f"data: {fingerprint.get('data', {}).get('name', 'unnamed')}; weights {weights(fingerprint['model'])}",
        "made with " + ", ".join(f"{name} {version}" for name, version in fingerprint["versions"].items()),
    ]


def facts(opened: Run) -> list[tuple[str, str, str]]:
    """(name, value, floor) of the held-out numbers."""
    val = opened.meta["metrics"].get("val")
    if not val:
        return [("held out", "nothing", "")]
    return [
        ("NMSE", f"{val['nmse']:.3f}", "floor 1: the mean"),
        ("L0", f"{val['l0']:.1f}", ""),
        ("dead", f"{val['dead_share']:.1%}", f"silent on {val['n']:,} held-out rows"),
    ]


def weights(model: dict[str, Any]) -> str:
    """Which weights: the hub's revision, or that they are random, and their checksum."""
    origin = model.get("revision") if model.get("pretrained", True) else f"RANDOM from seed {model.get('seed')}"
    return f"{f'{origin}, ' if origin else ''}sha256 {str(model.get('weights'))[:8]}"
