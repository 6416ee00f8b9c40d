"""Row by row over large matrices, in pieces that stay in a processor's cache, so that what is computed on the way never reaches memory."""

from collections.abc import Iterator

from torch import Tensor

PIECE = 2**18
"""Numbers in a piece."""


def row_pieces(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of each; all rows at once on other devices than a CPU, where every piece would be a launch."""
    first = matrices[0]
    rows = max(1, PIECE // first.shape[1]) if first.device.type == "cpu" else max(1, len(first))
    return zip(*(matrix.split(rows) for matrix in matrices), strict=True)
