"""Heads of planted directions: whose latents they are, how many kinds of them, and what a slow sum gives."""

import json

import numpy as np
import pytest
import torch

from evals.attention_heads import contributions, evaluate, table
from vsae import cli
from vsae.run import save_run
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, TopK

from .planted_store import run_of, store_of

HEADS, SIZE = 3, 8
D = HEADS * SIZE


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Head 0 writes one direction in six shades, head 1 three unrelated directions in two shades each, head 2 nothing that a latent stands for."""
    home, rng = tmp_path_factory.mktemp("heads"), torch.Generator().manual_seed(0)
    atoms = torch.zeros(12, D)
    atoms[:6, 0] = 1
    atoms[6:, SIZE : 2 * SIZE] = torch.eye(SIZE)[[0, 0, 1, 1, 2, 2]]
    atoms[:6, :SIZE] += 0.1 * torch.randn(6, SIZE, generator=rng)
    atoms[6:, SIZE : 2 * SIZE] += 0.1 * torch.randn(6, SIZE, generator=rng)
    x = atoms[torch.randint(0, 12, (200, 4), generator=rng)] * (1 + torch.rand(200, 4, 1, generator=rng))
    store = store_of(home / "store", {"attn.proj:input": (x, [2] * 4)})
    run = run_of(home / "run", store.site(), atoms, k=6, kinds=["text"])
    (home / "run").mkdir()
    save_run(home / "run", run.sae, store.site().read(0, 64).values, run.meta)
    return home, run, store.site()


def test_latents_go_to_their_heads_and_kinds_are_counted(home, tmp_path):
    _, run, site = home
    found = evaluate(run, site, tmp_path / "out", HEADS, top=6, resamples=50)
    live = found.live
    assert live == 12 and sum(each.latents for each in found.heads) == live
    assert {latent for latent, _ in found.heads[0].top[:3]} <= set(range(6))
    assert {latent for latent, _ in found.heads[1].top[:3]} <= set(range(6, 12))
    assert found.heads[0].latents <= 6 and found.heads[2].latents == 0
    assert found.heads[0].groups == 1 and found.heads[1].groups == 3 and found.heads[0].top[0][1] == pytest.approx(1)
    assert found.agreement.value == 1 and found.agreement.floor == pytest.approx(1 / 3)
    assert all(each.random_groups > 1 for each in found.heads) and found.polysemantic.floor == 1
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["value"] == found.polysemantic.value and written["n"]["heads"] == 3 and written["interval"]
    assert (tmp_path / "out/attention_heads.png").read_bytes().startswith(b"\x89PNG") and table(found).row_count == 3


@pytest.mark.parametrize("sparsifier", [TopK(3), ReLU()], ids=repr)
def test_contributions_are_those_of_a_slow_loop_whatever_the_batches(home, sparsifier):
    _, _, site = home
    sae = SAE.from_weights(torch.randn(D, 10), 0.2 * torch.randn(10), torch.randn(10, D), torch.randn(D), sparsifier)
    mean, fired, rows = contributions(sae, site.sequential(70), HEADS)
    x = site.read(0, site.n_rows).values
    codes = sae.encode(x).dense(10)
    for latent in range(10):
        on = codes[:, latent] != 0
        parts = [(x - sae.b_dec)[:, cut] @ sae.W_enc[cut, latent] for cut in (slice(0, 8), slice(8, 16), slice(16, 24))]
        slow = torch.stack(parts, 1)[on].double()
        assert fired[latent] == int(on.sum())
        if on.any():
            torch.testing.assert_close(mean[latent], slow.mean(0), rtol=1e-4, atol=1e-4)
    again = contributions(sae, site.sequential(999), HEADS)[0]
    torch.testing.assert_close(again, mean, rtol=1e-4, atol=1e-4)
    assert rows == 800 and np.asarray(fired).sum() == int((codes != 0).sum())


def test_as_a_person_types_it(home, capsys):
    folder = home[0]
    told = ["eval", "attention_heads", str(folder / "run"), str(folder / "store"), "--heads"]
    cli.main([*told, "3", "--top", "6"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Attention heads of" in said and "name the same head for 1.00" in said
    with pytest.raises(SystemExit):
        cli.main([*told, "5"])
    assert "24 dimensions cannot be cut into 5 heads" in capsys.readouterr().err
