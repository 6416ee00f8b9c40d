"""`vsae eval dark_matter`: what an SAE leaves out, in a part that is linear in the activations and one that is not."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from evals.dark_matter import Split, split
from evals.dark_matter_beside import GradientPursuit, norms
from evals.figures import ACCENT, QUIET, save
from evals.recovery_runs import parts
from evals.result import Result, write_result
from vsae.activations import Select, StoreSource, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run
from vsae.sae import require

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def evaluate(
    run: Run,
    site: SiteReader,
    out: Path,
    *,
    kinds: tuple[str, ...] | None = None,
    others: Sequence[Run] = (),
    pursuit: bool = False,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Split:
    """Fit on one half of the samples (of a run's own store: of those held out), measure on the other; write result.json and dark_matter.png to `out`.

    others: runs of the same activations, of other widths, whose errors' norms are predicted by this one's. pursuit: measure the atoms under gradient pursuit, too.
    Raises ValueError.
    """
    for other in others:
        fingerprint.check(other.fingerprint, site.fingerprint)
    if pursuit:
        require(run.sae, linear_decoder=True, for_="gradient pursuit")
    fingerprint.check(run.fingerprint, site.fingerprint)
    kinds = kinds or run.kinds
    fit, report = (Select(kinds, part, run.skip) for part in parts([run, *others], site, site, None, None)[1:])

    def rows(select: Select, what: str) -> Iterable[Any]:
        return track(site.sequential(batch_size, select), what, -(-StoreSource(site, select).n_rows // batch_size))

    def halves(what: str) -> tuple[Iterable[Any], Iterable[Any]]:
        return rows(fit, f"fit{what}"), rows(report, f"measure{what}")

    found = split(run.sae, *halves(""), site.kind_names, resamples=resamples, seed=seed)
    if pursuit:
        steps = max(1, round(run.meta["self_check"]["l0"]))
        pursued = GradientPursuit.of(run.sae, steps)
        again = split(pursued, *halves(", gradient pursuit"), site.kind_names, resamples=resamples, seed=seed)
        found = replace(found, pursuit=again)
    if others:
        saes = {str(other.path): other.sae for other in others}
        found = replace(found, norms=norms(run.sae, saes, *halves(", norms"), resamples, seed))
    write_result(
        out,
        Result(
            metric="R2 of the error, linear in the activations",
            value=found.total.r2.value,
            floor=found.total.r2.floor,
            interval=found.total.r2.interval,
            n={"rows": found.total.rows, "samples": found.samples, "rows fitted on": found.total.fit_rows},
            seeds={"bootstrap and shuffle": seed},
            splits={"fit": fit.describe(), "report": report.describe()},
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=list(found.kinds),
            fingerprint={"sae": run.fingerprint, "store": site.fingerprint},
            details=found,
        ),
    )
    draw(found, out / "dark_matter.png")
    return found


def sets(found: Split) -> dict[str, Any]:
    """What the table and the figure show."""
    pursued = {"all tokens, gradient pursuit": found.pursuit.total} if found.pursuit else {}
    return {"all tokens": found.total} | pursued | (found.kinds if len(found.kinds) > 1 else {})


def table(found: Split) -> Table:
    shown = Table(
        "tokens", "R2 of the error", "shuffled", "R2 of its squared norm", "FVU", "linear", "nonlinear", "rows"
    )
    for name, each in sets(found).items():
        low_high = each.r2.interval
        spread = f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
        numbers = [each.norm_r2, each.fvu, each.linear_fvu, each.nonlinear_fvu]
        shown.add_row(
            name,
            f"{each.r2.value:.3f}{spread}",
            f"{each.r2.floor:.3f}",
            *(f"{n.value:.3f}" for n in numbers),
            f"{each.rows:,}",
        )
    shown.title = "What is left out: the part that is linear in the activations, and the rest"
    lines = [f"too few rows to fit: {', '.join(found.left_out)}"] if found.left_out else []
    lines += [
        f"norm of the error of {name}, by this one's: R2 {'none' if r2.value is None else f'{r2.value:.3f}'} (shuffled {r2.floor:.3f})"
        for name, r2 in found.norms.items()
    ]
    shown.caption = "\n".join(lines) or None
    return shown


def draw(found: Split, path: Path) -> Path:
    """FVU of each set of tokens, stacked."""

    def on(axes: Any) -> None:
        names = list(sets(found))
        each = list(sets(found).values())
        dark = [one.nonlinear_fvu.value or 0 for one in each]
        axes.barh(names, dark, color=ACCENT, label="nonlinear")
        axes.barh(
            names,
            [max(one.linear_fvu.value or 0, 0) for one in each],
            left=dark,
            color=QUIET,
            label="linear in the activations",
        )
        axes.set(xlabel="FVU")
        axes.invert_yaxis()
        axes.legend(frameon=False)

    return save(on, path)
