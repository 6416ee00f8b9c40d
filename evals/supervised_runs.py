"""`vsae eval supervised`: how near a run comes to a dictionary that knows the attributes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from evals.attributes import Attributes
from evals.figures import save
from evals.label_reading import NONE, Track, atoms_of, means_of, read, write
from evals.result import Estimate
from evals.supervised import Supervised, Valued, compare
from vsae.activations.store import SiteReader
from vsae.run import Run
from vsae.sae import require


def supervised_of(
    run: Run,
    site: SiteReader,
    attributes: Attributes,
    out: Path,
    *,
    groups: Sequence[str] = (),
    n: int = 4,
    pairs: int = 200,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    kinds: tuple[str, ...] | None = None,
    track: Track = NONE,
) -> Supervised:
    """groups: attributes of several exclusive values, GROUP:VALUE in the table; those of which each sample has one at most when left out.

    A sample that has none or several values of a group has the value "other". Write result.json and supervised.png to `out`. Raises ValueError.
    """
    require(run.sae, linear_decoder=True, for_="the comparison with a supervised dictionary")
    found = read(run, site, attributes, kinds, "mean", batch_size, track)
    train, test = means_of(found)
    members = members_of(attributes.names, groups, np.concatenate([train.truth, test.truth]))
    atoms, bias = atoms_of(run), run.sae.bias.detach().double().cpu().numpy()
    columns = [numbered(train.truth, test.truth, at) for at in members.values()]
    train_values, test_values = (np.stack([column[side] for column in columns], 1) for side in (0, 1))
    asked = np.all([np.isin(test_values[:, at], train_values[:, at]) for at in range(len(columns))], axis=0)
    test, test_values = (
        test.some(np.flatnonzero(asked)),
        test_values[asked],
    )  # "other" may be new to the training samples
    sides = [
        Valued(part.x, bias + part.z @ atoms, part.z, values)
        for part, values in ((train, train_values), (test, test_values))
    ]
    compared = compare(sides[0], sides[1], atoms, tuple(members), n=n, pairs=pairs, resamples=resamples, seed=seed)
    own = [edit for edit in compared.edits if edit.how == f"{n} latents"]
    headline = (
        Estimate(
            float(np.mean([edit.success.value for edit in own])), float(np.mean([edit.success.floor for edit in own]))
        )
        if own
        else Estimate(None)
    )
    counts = {"training samples": len(train.x), "test samples": len(test.x), "attributes": len(members)}
    write(
        out,
        f"success of edits by {n} latents",
        headline,
        counts,
        run,
        site,
        found,
        {"supervised": compared, "n": n},
        seed,
    )
    draw_supervised(compared, out / "supervised.png")
    return compared


def members_of(names: Sequence[str], groups: Sequence[str], truth: np.ndarray) -> dict[str, list[int]]:
    """Group -> its columns. Raises ValueError for a group without two values, and where there is none."""
    found: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        group, colon, _ = name.partition(":")
        if colon:
            found.setdefault(group, []).append(at)
    if unknown := [group for group in groups if len(found.get(group, ())) < 2]:
        raise ValueError(
            f"there is no attribute {unknown[0]!r} with two values or more: choose from {', '.join(found) or 'none'}."
        )
    kept = {
        name: at
        for name, at in found.items()
        if name in groups or (not groups and len(at) > 1 and truth[:, at].sum(1).max() <= 1)
    }
    if not kept:
        raise ValueError("no attribute has exclusive values, as shape:star and shape:ring: name some with --groups.")
    return kept


def numbered(train: np.ndarray, test: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Number of each sample's value; what training lacks, several and none are the number after the last."""
    known = [at for at in columns if train[train[:, columns].sum(1) == 1, at].any()]
    sides = []
    for part in (train, test):
        one = (part[:, columns].sum(1) == 1) & part[:, known].any(1)
        sides.append(np.where(one, part[:, known].argmax(1), len(known)).astype(np.int64))
    return sides[0], sides[1]


def supervised_table(found: Supervised) -> Table:
    shown = Table("edit", "success", "without an edit", "side effect", "share of the activation")
    for how in dict.fromkeys(edit.how for edit in found.edits):
        mine = [edit for edit in found.edits if edit.how == how]
        effects = [edit.side_effect for edit in mine if edit.side_effect is not None]
        shown.add_row(
            how,
            f"{np.mean([edit.success.value for edit in mine]):.3f}",
            f"{np.mean([edit.success.floor for edit in mine]):.3f}",
            f"{np.mean(effects):.3f}" if effects else "-",
            f"{np.mean([edit.weight for edit in mine]):.3f}",
        )
    shown.title = f"Control of {len(found.probes)} attributes beside a supervised dictionary"
    shown.caption = "R2 of activations: " + ", ".join(f"{name} {each.value:.3f}" for name, each in found.r2.items())
    for kept in (each for each in found.kept if each.how != "reconstruction"):
        shown.caption += f"; {kept.attribute} read from {kept.how} {kept.accuracy.value:.2f}"
    return shown


def draw_supervised(found: Supervised, path: Path) -> Path:
    """Success of each way of editing, attribute by attribute."""

    def on(axes: Any) -> None:
        names = list(found.probes)
        for how in dict.fromkeys(edit.how for edit in found.edits):
            mine = {edit.attribute: edit.success.value for edit in found.edits if edit.how == how}
            axes.plot([mine.get(name) for name in names], range(len(names)), "o", ms=5, label=how)
        axes.set(
            xlabel="share of edits after which the probe says the new value",
            yticks=range(len(names)),
            yticklabels=names,
            xlim=(-0.02, 1.02),
        )
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
