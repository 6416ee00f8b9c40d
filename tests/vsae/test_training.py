"""The training loop: a planted problem it must solve, its parts' values, and what stops it."""

import json
import math

import pytest
import torch

import vsae
from vsae.activations import Moments
from vsae.activations.memory import TensorSource
from vsae.code import Code
from vsae.recipes import TopK
from vsae.sae import SAE
from vsae.sparsifiers import TopK as TopKPart
from vsae.training.config import TrainConfig
from vsae.training.dead import FiringClock, default_dead_tokens
from vsae.training.gauge import PATIENCE, Watch
from vsae.training.heldout import measure
from vsae.training.normalise import normalisation
from vsae.training.schedule import lr_factor

D, N, K, OFFSET, UNIT = 16, 32, 3, 4.0, 10.0


def planted(rows, seed, offset=OFFSET, unit=UNIT):
    """Sums of K of N random directions with coefficients in [1, 2], in a foreign unit and away from the origin."""
    world = torch.Generator().manual_seed(7)
    atoms = torch.nn.functional.normalize(torch.randn(N, D, generator=world), dim=1)
    draw = torch.Generator().manual_seed(seed)
    active = torch.rand(rows, N, generator=draw).topk(K).indices
    code = torch.zeros(rows, N).scatter_(1, active, 1 + torch.rand(rows, K, generator=draw))
    return unit * (code @ atoms + offset)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Problems this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return TensorSource(planted(8192, 1)), TensorSource(planted(2048, 2))


CONFIG = TrainConfig(tokens=400_000, batch_size=512, lr=3e-3, eval_every=200, tracker="none", seed=3)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    source, val = data
    return vsae.train(source, TopK(n_latents=64, k=K), tmp_path_factory.mktemp("run"), CONFIG, val, progress=False)


def test_a_planted_dictionary_is_found(run):
    assert run.meta["metrics"]["val"]["nmse"] < 0.1
    assert run.meta["metrics"]["val"]["nmse_floor"] == 1.0
    assert run.meta["metrics"]["val"]["n"] == 2048
    assert 0 < run.meta["metrics"]["val"]["l0"] <= K


def test_the_summary_counts_whole_batches(run):
    training = run.meta["training"]
    assert training["tokens"] >= 400_000 and training["tokens"] - 400_000 < 512
    assert training["steps"] == math.ceil(400_000 / 512)
    assert [point["step"] for point in training["curve"]] == [200, 400, 600]
    assert training["curve"][-1]["nmse"] < training["curve"][0]["nmse"]


def test_the_log_holds_every_look(run):
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in looks] == [*range(50, 751, 50), 782]
    assert {"train/nmse", "train/l0", "train/grad_norm", "train/dead_share", "train/lr"} <= set(looks[0])


def test_a_saved_run_is_the_trained_sae_behind_its_normalisation(run, data):
    """Rebuild the training SAE from the last checkpoint and feed it normalised rows."""
    from vsae.training import checkpoint

    last = checkpoint.newest(run.path / "checkpoint")
    source, val = data
    normalise = normalisation(CONFIG.normalise, source.moments())
    sae = TopK(n_latents=64, k=K).build(normalise(source.sample_rows(64, 0)), torch.zeros(D), 0)
    sae.load_state_dict({name[4:]: tensor for name, tensor in last.tensors.items() if name.startswith("sae.")})
    raw = val.rows
    expected = sae(normalise(raw)).x_hat * normalise.scale + normalise.shift
    torch.testing.assert_close(run.sae(raw).x_hat, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mode", ["none", "scale", "standardise"])
def test_fusing_normalisation_changes_nothing_but_the_units(mode):
    rows = planted(512, 3)
    normalise = normalisation(mode, TensorSource(rows).moments())
    sae = TopK(n_latents=64, k=K).build(normalise(rows), normalise(rows).mean(0), 0)
    fused = sae.fuse(normalise.shift, normalise.scale)
    inside, outside = sae(normalise(rows)), fused(rows)
    torch.testing.assert_close(outside.code.dense(64), inside.code.dense(64), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outside.x_hat, inside.x_hat * normalise.scale + normalise.shift, rtol=1e-4, atol=1e-2)


def test_normalisation_values():
    rows = planted(4096, 4)
    moments = TensorSource(rows).moments()
    scaled = normalisation("scale", moments)(rows)
    assert abs(float(scaled.square().sum(1).mean()) - D) < 1e-3
    standard = normalisation("standardise", moments)(rows).double()
    torch.testing.assert_close(standard.mean(0), torch.zeros(D).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.var(0, correction=0), torch.ones(D).double(), atol=1e-4, rtol=0)
    assert torch.equal(normalisation("none", moments)(rows), rows)


def test_a_constant_dimension_is_shifted_and_not_blown_up():
    rows = planted(256, 5)
    rows[:, 3] = 2.5
    assert normalisation("standardise", TensorSource(rows).moments())(rows)[:, 3].abs().max() < 1e-4


@pytest.mark.parametrize("moments", [Moments(0, torch.zeros(2).double(), torch.zeros(2).double())])
def test_nothing_to_learn_is_said(moments):
    with pytest.raises(ValueError, match="0 activation rows selected for training are all alike"):
        normalisation("scale", moments)


def test_rows_that_are_not_finite_are_said():
    rows = planted(16, 1)
    rows[3, 2] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinite"):
        normalisation("scale", TensorSource(rows).moments())


@pytest.mark.parametrize(
    ("before", "expected"), [(0, 0.1), (900, 1.0), (5000, 1.0), (8000, 1.0), (9000, 0.5), (9900, 0.05)]
)
def test_schedule_values(before, expected):
    assert lr_factor(before, 100, 10_000, warmup=0.1, decay=0.2) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "expected"), [(0, 0.1), (5000, 1.0), (8000, 1.0), (8500, 0.853553), (9000, 0.5), (9500, 0.146447)]
)
def test_schedule_along_a_cosine(before, expected):
    assert lr_factor(before, 100, 10_000, warmup=0.1, decay=0.2, shape="cosine") == pytest.approx(expected, abs=1e-6)


def test_schedule_without_warmup_and_decay_is_flat():
    assert {lr_factor(before, 10, 100, 0.0, 0.0) for before in range(0, 100, 10)} == {1.0}


def test_the_firing_clock_against_a_count_by_hand():
    clock = FiringClock(4, torch.device("cpu"))
    clock.tick(Code(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), torch.tensor([[0, 1], [2, 0]])), 2)
    assert clock.since.tolist() == [0, 2, 0, 2]  # an empty slot is no firing, a negative value is one
    clock.tick(Code(torch.tensor([[0.0, 3.0]]), torch.tensor([[0, 3]])), 1)
    assert clock.since.tolist() == [1, 3, 1, 0]
    assert clock.dead(2).tolist() == [1]


def test_default_dead_tokens():
    assert default_dead_tokens(10**9) == 10_000_000
    assert default_dead_tokens(50_000) == 5000


def test_latents_that_never_fire_are_given_to_the_objective_and_counted(data, tmp_path, monkeypatch):
    """Half the encoder looks away so hard that only AuxK could bring it back, and it is switched off."""
    source, val = data
    build, seen = TopK.build, []

    def hampered(self, sample, mean, seed):
        sae = build(self, sample, mean, seed)
        with torch.no_grad():
            sae.encoder.bias[:32] = -1e6
        return sae

    def objective(self):
        inner = TopK(n_latents=64, k=K, auxk_coefficient=0.0)

        def call(sae, x, dead, progress, factors=None):
            seen.append(dead.tolist())
            return original(inner)(sae, x, dead)

        return call

    original = TopK.objective
    monkeypatch.setattr(TopK, "build", hampered)
    monkeypatch.setattr(TopK, "objective", objective)
    config = TrainConfig(tokens=30 * 512, batch_size=512, dead_tokens=5 * 512, check_every=10, tracker="none")
    run = vsae.train(source, TopK(n_latents=64, k=K), tmp_path, config, val, progress=False)
    assert seen[0] == seen[9] == [] and set(range(32)) <= set(seen[10]) and len(seen) == 30
    assert run.meta["training"]["dead_share"] >= 0.5
    assert run.meta["metrics"]["val"]["dead_share"] >= 0.5


class Perfect(SAE):
    def forward(self, x):
        return super().forward(x)._replace(x_hat=x)


def plain_sae(cls=SAE, b_dec=None):
    weight = torch.eye(D)
    sae = cls.from_weights(weight, torch.zeros(D), weight, torch.zeros(D) if b_dec is None else b_dec, TopKPart(2))
    sae.__class__ = cls
    return sae


def test_heldout_is_0_for_perfect_and_1_for_the_mean():
    rows = planted(1000, 6)
    assert measure(plain_sae(Perfect), [rows], torch.device("cpu")).nmse == 0
    silent = plain_sae(b_dec=rows.mean(0))
    silent.encoder.bias.fill_(-1e6)
    found = measure(silent, rows.split(77), torch.device("cpu"))
    assert found.nmse == pytest.approx(1, abs=1e-6) and found.l0 == 0 and found.dead_share == 1


def test_heldout_does_not_depend_on_the_split_and_keeps_its_limit():
    rows, sae = planted(1000, 6), plain_sae()
    whole = measure(sae, [rows], torch.device("cpu"))
    parts = measure(sae, rows.split(13), torch.device("cpu"))
    assert whole.nmse == pytest.approx(parts.nmse, rel=1e-9) and whole.l0 == parts.l0 == 2
    assert measure(sae, rows.split(13), torch.device("cpu"), limit=100).n == 100


def test_heldout_of_rows_all_alike_is_refused():
    with pytest.raises(ValueError, match="the 5 held-out rows are all alike"):
        measure(plain_sae(), [torch.ones(5, D)], torch.device("cpu"))


def test_the_global_generator_is_neither_used_nor_touched(data, tmp_path):
    source, _ = data
    config = TrainConfig(tokens=2048, batch_size=512, tracker="none")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = vsae.train(source, TopK(n_latents=64, k=K), tmp_path / "a", config, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = vsae.train(source, TopK(n_latents=64, k=K), tmp_path / "b", config, progress=False)
    assert torch.equal(first.sae.W_enc, second.sae.W_enc)
    other = vsae.train(
        source,
        TopK(n_latents=64, k=K),
        tmp_path / "c",
        TrainConfig(tokens=2048, batch_size=512, seed=1, tracker="none"),
    )
    assert not torch.equal(first.sae.W_enc, other.sae.W_enc)


def test_epochs_and_tokens_are_one_budget(data, tmp_path):
    source, _ = data
    run = vsae.train(
        source, TopK(n_latents=64, k=K), tmp_path, TrainConfig(epochs=0.5, batch_size=3000, tracker="none")
    )
    assert run.meta["training"]["tokens"] == 6000 and run.meta["training"]["budget"] == 4096
    with pytest.raises(ValueError, match="give one budget, not both"):
        TrainConfig(tokens=5, epochs=1)
    with pytest.raises(ValueError, match="give a budget in tokens"):
        TrainConfig(epochs=1).budget(None)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("batch_size", 0, "training batch_size is 0: it must be more than 0"),
        ("warmup", 1.5, "training warmup is 1.5: it must be a share"),
        ("lr", -1.0, "training lr is -1.0: it must be more than 0"),
        ("beta2", 1.0, "training beta2 is 1.0"),
        ("clip", -1.0, "training clip is -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_named(field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**{field: value})


def breaking(monkeypatch, at, how):
    """Let the recipe's objective go wrong at step `at`, counted from 1."""
    original, calls = TopK.objective, []

    def objective(self):
        inner = original(self)

        def call(sae, x, dead, progress, factors=None):
            calls.append(1)
            loss = inner(sae, x, dead)
            return how(loss) if len(calls) >= at else loss

        return call

    monkeypatch.setattr(TopK, "objective", objective)


def test_nan_names_the_step_and_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    source, _ = data
    breaking(monkeypatch, 37, lambda loss: loss._replace(total=loss.total * float("nan")))
    config = TrainConfig(tokens=100 * 512, batch_size=512, checkpoint_every=10, check_every=20, tracker="none")
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 37\..*step-00000030\."):
        vsae.train(source, TopK(n_latents=64, k=K), tmp_path, config, progress=False)
    assert [path.name for path in sorted((tmp_path / "checkpoint").glob("step-*"))] == [
        "step-00000020",
        "step-00000030",
    ]
    assert not (tmp_path / "run.json").exists()


def test_an_infinite_gradient_stops_too(data, tmp_path, monkeypatch):
    source, _ = data
    breaking(monkeypatch, 5, lambda loss: loss._replace(total=(loss.total - loss.total.detach()) * float("inf") + 1))
    config = TrainConfig(tokens=100 * 512, batch_size=512, check_every=10, tracker="none")
    with pytest.raises(FloatingPointError, match=r"at step 5\..*no checkpoint yet"):
        vsae.train(source, TopK(n_latents=64, k=K), tmp_path, config, progress=False)


def test_a_run_that_diverges_stops_with_a_checkpoint_from_before(data, tmp_path, monkeypatch):
    source, _ = data

    def runaway(loss):
        return loss._replace(error=loss.error * 10_000)

    breaking(monkeypatch, 41, runaway)
    config = TrainConfig(tokens=1000 * 512, batch_size=512, check_every=10, checkpoint_every=5, tracker="none")
    with pytest.raises(FloatingPointError, match=r"diverges at step 90 .*step-000000\d\d\."):
        vsae.train(source, TopK(n_latents=64, k=K), tmp_path, config, progress=False)
    assert max(path.name for path in (tmp_path / "checkpoint").glob("step-*")) == "step-00000045"


def test_what_counts_as_diverging():
    watch = Watch()
    for nmse in (5.0, 0.5, 4.0, 4.0, 6.0, 6.0, 6.0, 6.0):  # 4.0 is above 2, but not above 10 x 0.5
        watch.see(nmse)
    assert not watch.diverged and watch.bad == PATIENCE - 1
    watch.see(0.6)
    assert watch.bad == 0
    for _ in range(PATIENCE):
        watch.see(5.1)
    assert watch.diverged


def test_tensorboard_holds_the_curves(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    source, val = data
    config = TrainConfig(tokens=20 * 512, batch_size=512, check_every=5, eval_every=10)
    vsae.train(source, TopK(n_latents=64, k=K), tmp_path, config, val, progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/nmse")] == [5, 10, 15, 20]
    assert [event.step for event in events.Scalars("val/nmse")] == [10]


def test_progress_is_a_line_now_and_then_when_nobody_watches(data, tmp_path, capfd):
    source, _ = data
    config = TrainConfig(tokens=20 * 512, batch_size=512, check_every=5, log_every_seconds=1e-6, tracker="none")
    vsae.train(source, TopK(n_latents=64, k=K), tmp_path / "a", config)
    error = capfd.readouterr().err
    assert "step 10 |" in error and "NMSE" in error and "tokens/s" in error and "dead" in error and "left" in error
    vsae.train(source, TopK(n_latents=64, k=K), tmp_path / "b", config, progress=False)
    assert capfd.readouterr().err == ""


def test_wandb_that_is_not_installed_is_one_sentence(data, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(ValueError, match=r"pip install 'vsae\[wandb\]'"):
        vsae.train(data[0], TopK(n_latents=64, k=K), tmp_path, TrainConfig(tracker="wandb"), progress=False)


def test_wandb_that_does_not_start_is_one_sentence(data, tmp_path, monkeypatch):
    unknown = type("UsageError", (Exception,), {"__module__": "wandb.errors.errors"})

    def start(*_):
        raise unknown("No API key configured.\nUse `wandb login`.")

    monkeypatch.setattr("importlib.util.find_spec", lambda *_: object())
    monkeypatch.setattr("accelerate.Accelerator.__init__", lambda self, **_: None)
    monkeypatch.setattr("accelerate.Accelerator.device", torch.device("cpu"), raising=False)
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", start)
    with pytest.raises(
        ValueError, match=r"No API key configured\. Use `wandb login`\.\): log in .* WANDB_MODE=offline"
    ):
        vsae.train(data[0], TopK(n_latents=64, k=K), tmp_path, TrainConfig(tracker="wandb"), progress=False)


def test_bf16_autocast_trains_too(data, tmp_path):
    source, val = data
    config = TrainConfig(tokens=100_000, batch_size=512, lr=3e-3, precision="bf16", tracker="none")
    run = vsae.train(source, TopK(n_latents=64, k=K), tmp_path, config, val, progress=False)
    assert run.meta["metrics"]["val"]["nmse"] < 0.8
    assert run.sae.W_enc.dtype == torch.float32
