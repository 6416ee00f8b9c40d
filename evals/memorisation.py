"""Is a generated image one that the generator has seen? By the codes of single images (2506.19708, datapoint level; norm and cut-off are ours).

    distance    |a - b| / (|a| + |b|)        a, b: pooled codes of two images; 0: equal, 1: nothing in common

Relative, for two nearly empty images have a small absolute distance, too; images below a minimum energy |a| are left out and counted.

pair        generated image i against the real image of its caption; control: against the real images of other captions, drawn at random
nearest     generated image i against all real images; control: each real image against its nearest other one

An image is a candidate where its distance is below the smallest of the control: a sign to look at it, no proof.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array

ROWS = 1024


@dataclass(frozen=True)
class Memorised:
    """Distances of generated images, and of the control."""

    distance: Float[np.ndarray, "images"]
    """NaN for an image that was left out."""
    real: Int[np.ndarray, "images"]
    """The real image that each was compared with."""
    control: Float[np.ndarray, "control"]
    min_energy: float
    left_out: int

    @property
    def candidates(self) -> Int[np.ndarray, "found"]:
        """Images nearer than any of the control, nearest first."""
        if not len(self.control):
            return np.empty(0, np.int64)
        near = np.flatnonzero(self.distance < self.control.min())
        return near[np.argsort(self.distance[near], kind="stable")]


def relative_distance(first: csr_array, second: csr_array) -> Float[np.ndarray, "rows"]:
    """Row by row; NaN where both are empty."""
    apart, lengths = norms(csr_array(first - second)), norms(first) + norms(second)
    return np.divide(apart, lengths, out=np.full_like(apart, np.nan), where=lengths > 0)


def pairs(
    generated: csc_array, real: csc_array, *, min_energy: float | None = None, repairings: int = 10, seed: int = 0
) -> Memorised:
    """Row i of both is of one caption. min_energy: a tenth of the median |real code| when left out."""
    ours, theirs = csr_array(generated), csr_array(real)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{ours.shape[0]} generated and {theirs.shape[0]} real images are no pairs: look for the nearest."
        )
    n, least = theirs.shape[0], floor_of(theirs, min_energy)
    enough = (norms(ours) >= least) & (norms(theirs) >= least)
    distance = np.where(enough, relative_distance(ours, theirs), np.nan)
    rng, control = np.random.default_rng([seed, 3]), [np.empty(0)]
    for shift in rng.integers(1, n, repairings) if n > 1 else ():
        order = rng.permutation(n)
        other = np.empty(n, np.int64)
        other[order] = np.roll(order, shift)  # never its own: a cycle moves every image
        usable = np.flatnonzero((norms(ours) >= least) & (norms(theirs)[other] >= least))
        control.append(relative_distance(ours[usable], theirs[other[usable]]))
    return Memorised(distance, np.arange(n), np.concatenate(control), least, int((~enough).sum()))


def nearest(generated: csc_array, real: csc_array, *, min_energy: float | None = None) -> Memorised:
    """Each generated image and the nearest of all real ones. Raises ValueError where fewer than two real images have the minimum energy."""
    ours, theirs = csr_array(generated), csr_array(real)
    least = floor_of(theirs, min_energy)
    known, asked = np.flatnonzero(norms(theirs) >= least), np.flatnonzero(norms(ours) >= least)
    if len(known) < 2:
        raise ValueError(f"{len(known)} real images have an energy of {least:g}: nearest neighbours need two or more.")
    where = np.full(ours.shape[0], -1)
    where[asked] = known[closest(ours[asked], theirs[known])]
    distance = np.full(ours.shape[0], np.nan)
    distance[asked] = relative_distance(ours[asked], theirs[where[asked]])
    among = closest(theirs[known], theirs[known], itself=False)
    control = relative_distance(theirs[known], theirs[known[among]])
    return Memorised(distance, where, control, least, ours.shape[0] - len(asked))


def closest(first: csr_array, second: csr_array, itself: bool = True) -> Int[np.ndarray, "rows"]:
    """Row of `second` nearest to each of `first`; with `itself` False, row i is not its own neighbour."""
    lengths, found = norms(second), []
    for start in range(0, first.shape[0], ROWS):
        rows = first[start : start + ROWS]
        own = norms(rows)[:, None]
        squared = own**2 + lengths**2 - 2 * (rows @ second.T).toarray()
        distance = np.sqrt(np.maximum(squared, 0)) / np.maximum(own + lengths, np.finfo(float).tiny)
        if not itself:
            at = np.arange(len(distance))
            distance[at, start + at] = np.inf
        found.append(distance.argmin(1))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def floor_of(real: csr_array, min_energy: float | None) -> float:
    """The minimum energy. Raises ValueError unless it is positive."""
    least = 0.1 * float(np.median(norms(real))) if min_energy is None else min_energy
    if not least > 0:
        raise ValueError(
            f"the minimum energy is {least:g}, so that empty images would pass for copies: choose a positive one."
        )
    return least


def norms(rows: csr_array) -> Float[np.ndarray, "rows"]:
    return np.sqrt(np.asarray(rows.multiply(rows).sum(1, dtype=np.float64)).ravel())
