"""Killed runs go on as if nothing had happened; what is not the same run is refused; damage is passed over or named."""

import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vsae
from vsae.activations import write_store
from vsae.recipes import RECIPES, TopK
from vsae.training import guard, loop

JOB = Path(__file__).with_name("train_job.py")
spec = importlib.util.spec_from_file_location("train_job", JOB)
train_job = importlib.util.module_from_spec(spec)
FILES = ("run.json", "cfg.json", "sae_weights.safetensors", "self_check.safetensors")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    spec.loader.exec_module(train_job)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbed."""
    return train_job.job(tmp_path_factory.mktemp("whole"))


def start(out, seconds=0.0, *more):
    return subprocess.Popen(
        [sys.executable, str(JOB), str(out), str(seconds), *more], stderr=subprocess.PIPE, text=True
    )


def steps(out):
    return sorted(int(path.name[5:]) for path in (out / "checkpoint").glob("step-*"))


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def interrupted(out):
    """Leave `out` with two checkpoints and no end; return their folders."""
    with pytest.raises(train_job.Halted):
        train_job.job(out, halt_after=25)
    assert steps(out) == [11, 22]
    return sorted((out / "checkpoint").glob("step-*"))


def same(out, whole):
    for name in FILES:
        there = [(path / name).read_bytes() if (path / name).exists() else None for path in (out, whole.path)]
        assert there[0] == there[1], name
        assert there[0] is not None or name == "cfg.json"  # which only what SAELens can express has


def test_a_fit_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    """ITDA, which has no steps of gradients but grows batch by batch: nothing is looked at twice, nothing is lost."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    train_job.job(whole, recipe=train_job.GREEDY)
    process = start(out, 0.02, "itda")
    wait_for(lambda: steps(out), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before the kill: make the job longer"
    seen = steps(out)[-1]
    with pytest.raises(train_job.Halted):  # it goes on, up to here, from where it was
        train_job.job(out, halt_after=15, recipe=train_job.GREEDY)
    assert seen < steps(out)[-1] <= seen + 15
    found = train_job.job(out, recipe=train_job.GREEDY)
    assert found.sae.n_latents > 100 and found.meta["training"]["tokens"] == 3500
    for name in ("run.json", "sae_weights.safetensors", "self_check.safetensors", "atoms.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_runs_killed_at_random_moments_end_in_the_same_bytes(whole, tmp_path, capfd):
    chance = random.Random(1)
    seen: list[int] = []
    for _ in range(3):
        process = start(tmp_path, 0.003)
        before = seen[-1] if seen else 0
        wait_for(lambda least=before: (steps(tmp_path) or [0])[-1] > least, process)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before the kill: make the job longer"
        seen.append(steps(tmp_path)[-1])
        assert len(steps(tmp_path)) <= 3 and not (tmp_path / "run.json").exists()
    assert seen == sorted(set(seen)), "every process went on where the last one was"
    train_job.job(tmp_path)
    assert f"going on from step {seen[-1]}" in capfd.readouterr().err
    same(tmp_path, whole)
    lines = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == sorted(lines) and lines.count(7) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_says_how_to_go_on_and_fails(whole, tmp_path, number):
    process = start(tmp_path, 0.02)
    wait_for(lambda: steps(tmp_path), process)
    process.send_signal(number)
    message = process.communicate()[1]
    assert process.returncode not in (0, -number)
    assert f"stopped by {number.name} at step {steps(tmp_path)[-1]}" in message and "the same call goes on" in message
    train_job.job(tmp_path)
    same(tmp_path, whole)


def test_two_processes_do_not_share_a_directory(tmp_path):
    with guard.claimed(tmp_path):
        other = start(tmp_path)
        message = other.communicate()[1]
    assert other.returncode == 2 and "another process is training into" in message
    assert not (tmp_path / "checkpoint").exists()


def test_a_finished_run_is_returned_as_it_is(whole):
    before = {name: (whole.path / name).stat().st_mtime_ns for name in FILES}
    again = train_job.job(whole.path)
    assert torch.equal(again.sae.W_enc, whole.sae.W_enc)
    assert before == {name: (whole.path / name).stat().st_mtime_ns for name in FILES}


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_is_refused_by_name(whole, tmp_path, finished):
    out = whole.path
    if not finished:
        out = tmp_path
        interrupted(out)
    with pytest.raises(
        ValueError, match=r"config\.batch_size \(300 there, 301 now\), config\.lr \(0\.003 there, 0\.001 now\)"
    ):
        train_job.job(out, lr=1e-3, batch_size=301)
    source = vsae.TensorSource(torch.randn(100, 12))
    with pytest.raises(ValueError, match=r"recipe\.fields\.k \(4 there, 5 now\), source .*val"):
        config = vsae.TrainConfig(**json.loads((whole.path / "run.json").read_text())["config"])
        vsae.train(source, TopK(n_latents=96, k=5), out, config)


def test_a_setting_that_an_older_version_did_not_have_counts_as_its_default(whole, tmp_path):
    out = tmp_path / "older"
    shutil.copytree(whole.path, out)
    about = json.loads((out / "run.json").read_text())
    del about["config"]["decay_shape"], about["recipe"]["fields"]["auxk_coefficient"]
    (out / "run.json").write_text(json.dumps(about))
    assert train_job.job(out).path == out
    with pytest.raises(ValueError, match=r"differs: config\.decay_shape \(linear there, cosine now\)\."):
        train_job.job(out, decay_shape="cosine")


def test_a_request_that_came_to_nothing_is_forgotten(tmp_path):
    with pytest.raises(train_job.Halted):
        train_job.job(tmp_path, lr=1.0, halt_after=3)
    with pytest.raises(train_job.Halted):
        train_job.job(tmp_path, lr=2.0, halt_after=12)
    with pytest.raises(ValueError, match=r"config\.lr \(2\.0 there, 1\.0 now\)"):
        train_job.job(tmp_path, lr=1.0)


def test_bookkeeping_may_change_between_calls(whole):
    assert train_job.job(whole.path, checkpoint_every=5, tracker="tensorboard").path == whole.path


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, file, caplog):
    newest = interrupted(tmp_path)[-1]
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    train_job.job(tmp_path)
    assert f"{newest} is damaged" in caplog.text and "Going on from the checkpoint before it" in caplog.text
    same(tmp_path, whole)


def test_when_every_checkpoint_is_damaged_it_begins_again(whole, tmp_path, caplog):
    for path in interrupted(tmp_path):
        (path / "state.json").unlink()
    train_job.job(tmp_path)
    assert "is damaged" in caplog.text
    same(tmp_path, whole)


def test_when_checkpoints_are_written_does_not_change_the_result(whole, tmp_path):
    train_job.job(tmp_path, checkpoint_every=10**9, checkpoint_seconds=0.05)
    for name in ("sae_weights.safetensors", "self_check.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is an activation store"):
        train_job.job(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        train_job.job(tmp_path / "file")
    (tmp_path / "saelens").mkdir()
    (tmp_path / "saelens/cfg.json").write_text("theirs")
    with pytest.raises(ValueError, match=r"already holds other files, such as cfg\.json: choose a new folder"):
        train_job.job(tmp_path / "saelens")
    assert [path.read_text() for path in (tmp_path / "saelens").iterdir()] == ["theirs"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A store of 300 samples of 1 + 9 tokens, in bfloat16, in small shards."""

    def chunks(first):
        for batch in range(first, 30):
            draw = torch.Generator().manual_seed(batch)
            values = torch.randn(10, 10, 12, generator=draw).relu()
            kinds = torch.tensor([0] + [1] * 9, dtype=torch.uint8).expand(10, 10)
            samples = [{"key": f"{batch}-{row}", "path": "", "caption": None, "label": None} for row in range(10)]
            tokens = SimpleNamespace(values=values, kinds=kinds.contiguous(), grid=(3, 3))
            yield SimpleNamespace(batch=batch, samples=samples, bad=[], activations={"blocks.1": tokens})

    request = {"model": {"name": "m", "weights": "w", "preprocessing": {}}, "data": {"n": 300}}
    path = tmp_path_factory.mktemp("store") / "store"
    return write_store(path, chunks, request, rows_per_shard=700, kind_names=("cls", "patch")).site()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_on_exactly_from_a_store(site, tmp_path, name, monkeypatch):
    recipe = RECIPES[name](48, **({"k": 4} if "k" in RECIPES[name].__dataclass_fields__ else {}))

    def train(out, halt_after=None):
        patches = ("patch",)
        source = vsae.StoreSource(site, vsae.Select(patches, (0.0, 0.9)), pool_rows=500, block_rows=32)
        val = vsae.StoreSource(site, vsae.Select(patches, (0.9, 1.0)), pool_rows=500, block_rows=32)
        config = vsae.TrainConfig(
            epochs=3,
            batch_size=128,
            lr=1e-3,
            check_every=7,
            checkpoint_every=9,
            eval_every=20,
            dead_tokens=1000,
            tracker="none",
        )
        with monkeypatch.context() as patch:
            if halt_after is not None:
                moved, left = loop.moved, iter(range(halt_after))
                patch.setattr(loop, "moved", lambda *given: moved(*given) if next(left, None) is not None else halt())
            return vsae.train(source, recipe, out, config, val, progress=False)

    def halt():
        raise train_job.Halted

    whole = train(tmp_path / "whole")
    for halt_after in (13, 21, 5):
        with pytest.raises(train_job.Halted):
            train(tmp_path / "halted", halt_after)
    train(tmp_path / "halted")
    same(tmp_path / "halted", whole)
    assert whole.meta["fingerprint"]["site"] == "blocks.1" and whole.meta["fingerprint"]["select"]["kinds"] == ["patch"]
    assert whole.meta["training"]["tokens"] >= 3 * 0.8 * 2700
