"""Sites in memory whose codes are written down by hand: latent j of the SAE is dimension j of the activations."""

import pyarrow as pa
import torch

from vsae.activations import Batch
from vsae.code import Code
from vsae.sae import SAE
from vsae.sparsifiers import ReLU

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>\u2028&amp; ${7*7} {{ 7*7 }}"
KINDS = ("cls", "register", "patch", "image", "text", "special", "pad")


class Signed(SAE):
    """Codes are the activations themselves, negative ones too."""

    def encode(self, x):
        return Code.full(x.to(self.b_dec.dtype))


def identity_sae(n, signed=False):
    sae = SAE.from_weights(torch.eye(n), torch.zeros(n), torch.eye(n), torch.zeros(n), ReLU())
    return Signed(sae.encoder, sae.sparsifier, sae.dictionary, torch.zeros(n)) if signed else sae


class Site:
    """What explore() needs of a SiteReader."""

    def __init__(self, values, kinds, samples, positions, table, grid):
        kinds, positions = torch.as_tensor(kinds, dtype=torch.uint8), torch.as_tensor(positions, dtype=torch.int32)
        self.batch = Batch(values, kinds, torch.as_tensor(samples), positions)
        self.table, self.grid, self.kind_names, self.n_rows = table, grid, KINDS, len(values)

    @property
    def samples(self):
        return pa.Table.from_pylist(self.table)

    def sequential(self, batch_size, select=None):
        for at in range(0, self.n_rows, batch_size):
            yield Batch(*(column[at : at + batch_size] for column in self.batch))


def table(n, **common):
    row = {"caption": "a photo", "label": None, "width": 8, "height": 8} | common
    return [{"key": f"k{i}", "path": f"{i}.jpg"} | row for i in range(n)]


def images_site(codes, grid, **common):
    """`codes` [images, 1 + rows * columns, n]: a class token, then patches."""
    n_images, tokens, n = codes.shape
    kinds, samples = ([0] + [2] * (tokens - 1)) * n_images, torch.arange(n_images).repeat_interleave(tokens)
    positions = torch.arange(tokens).repeat(n_images)
    return Site(codes.reshape(-1, n), kinds, samples, positions, table(n_images, **common), grid)


def texts_site(codes, **common):
    """`codes` [texts, tokens, n]: text tokens, on no grid."""
    n_texts, tokens, n = codes.shape
    samples, positions = torch.arange(n_texts).repeat_interleave(tokens), torch.arange(tokens).repeat(n_texts)
    return Site(codes.reshape(-1, n), [4] * n_texts * tokens, samples, positions, table(n_texts, **common), None)
