"""Several processes train what one would have trained: the same losses and the same codes, by rows, by latents, and by both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vsae
from vsae.parallel import Layout, all_rows, step_of, sum_rows

JOB = Path(__file__).with_name("parallel_job.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs, made by one program."""
    path = tmp_path_factory.mktemp("parallel")
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    found = subprocess.run(
        [sys.executable, str(JOB), str(path)], env=alone | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return path


def logged(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("several", "one"),
    [
        ("topk-2-rows", "topk-1"),
        ("topk-2-latents", "topk-1"),
        ("topk-4-latents", "topk-1"),
        ("topk-4-both", "topk-1"),
        ("abs_topk-2-latents", "abs_topk-1"),
        ("relu-4-rows", "relu-1"),
    ],
)
def test_losses_and_codes_are_those_of_one_process(folder, several, one):
    logs = [logged(folder / name) for name in (several, one)]
    assert len(logs[0]) == len(logs[1])
    compared = [name for name in logs[1][0] if name.startswith("train/")]
    assert {"train/loss", "train/mse", "train/nmse", "train/l0", "train/grad_norm", "train/dead_share"} <= {*compared}
    for got, want in zip(*logs, strict=True):
        for name, value in want.items():
            if name != "time":
                assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (want["step"], name)
    runs = [vsae.Run.load(folder / name) for name in (several, one)]
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(9))
    codes = [run.sae.encode(x).dense(run.sae.n_latents) for run in runs]
    torch.testing.assert_close(codes[0], codes[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(codes[0] != 0, codes[1] != 0)
    torch.testing.assert_close(runs[0].sae.W_enc, runs[1].sae.W_enc, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runs[0].sae.atoms, runs[1].sae.atoms, rtol=1e-5, atol=1e-5)
    assert runs[0].meta["metrics"]["val"]["nmse"] == pytest.approx(runs[1].meta["metrics"]["val"]["nmse"], rel=1e-5)
    assert runs[0].meta["metrics"]["val"]["dead_share"] == runs[1].meta["metrics"]["val"]["dead_share"]


def test_the_problem_has_dead_latents_for_auxk_to_look_at(folder):
    assert any(
        line.get("train/dead_share", 0) > 0 and line.get("train/auxk", 0) > 0 for line in logged(folder / "topk-1")
    )


def test_a_divided_run_goes_on_from_its_shards_checkpoints(folder):
    weights = [
        (folder / name / "sae_weights.safetensors").read_bytes() for name in ("resumed-latents", "topk-2-latents")
    ]
    assert weights[0] == weights[1]
    assert {path.name for path in (folder / "resumed-latents" / "checkpoint").glob("shard*")} == {
        "shard-1-of-2",
        "shard-2-of-2",
    }


def test_what_cannot_be_divided_is_refused_in_a_sentence(folder):
    for rank in range(2):
        assert "only recipes of a linear encoder" in (folder / f"refused-{rank}.txt").read_text()
        assert "n_latents is 65, which 2 shards cannot share evenly" in (folder / f"uneven-{rank}.txt").read_text()


def test_shards_without_processes_are_refused(tmp_path):
    config = vsae.TrainConfig(tokens=100, shards=2, tracker="none", device="cpu")
    with pytest.raises(ValueError, match=r"training\.shards is 2, and this is one process: start 2"):
        vsae.train(vsae.TensorSource(torch.randn(64, 4)), vsae.recipes.TopK(8, 2), tmp_path, config, progress=False)


def test_one_process_is_given_back_what_it_gives():
    x = torch.randn(5, 3)
    layout = Layout()
    assert torch.equal(layout.cut(x), x)
    with step_of(layout, 99):
        assert sum_rows(x) is x and all_rows(5) == 5


def test_parts_of_a_batch_are_all_of_it():
    x = torch.arange(11)
    layouts = [Layout(rank, 8, 2) for rank in range(8)]
    assert torch.cat([layout.cut(x) for layout in layouts if layout.shard == 0]).tolist() == x.tolist()
    assert [layout.shard for layout in layouts] == [0, 1] * 4
