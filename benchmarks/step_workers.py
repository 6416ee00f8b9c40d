"""The contestants of step.py, one to a process: reads its job as JSON, says that it is ready, then makes a few steps for every line it is sent."""

import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F

LR = 1e-4
BATCHES = 32
Step = Callable[[torch.Tensor], object]
ENTERED = ExitStack()


def limit(d: int, n: int, k: int, batch: int, encode: bool) -> Step:
    weight = torch.randn(n, d)
    parameters = [torch.randn(n, d).requires_grad_() for _ in range(2)]
    optimiser = torch.optim.Adam(parameters, lr=LR, fused=True)
    for parameter in parameters:
        parameter.grad = torch.randn(n, d)
    out = torch.empty(batch, n)

    def step(x: torch.Tensor) -> None:
        with torch.no_grad():
            torch.mm(x, weight.T, out=out).topk(k, sorted=False)
        if not encode:
            optimiser.step()

    return step


def vsae(d: int, n: int, k: int, batch: int, encode: bool, selection: str = "auto", recipe: str = "topk") -> Step:
    from pathlib import Path
    from tempfile import mkdtemp

    from vsae.encoders import Linear
    from vsae.ops.coarse import fast_forms
    from vsae.ops.rescored import Trust
    from vsae.recipes import RECIPES
    from vsae.training.config import TrainConfig
    from vsae.training.dead import FiringClock
    from vsae.training.gauge import Gauge
    from vsae.training.memory import kept_memory
    from vsae.training.state import Training
    from vsae.training.student import step as one_step
    from vsae.training.trackers import accelerator

    device = torch.device("cpu")
    recipe_of = RECIPES[recipe](n_latents=n, k=k)
    sample = torch.randn(4 * n if recipe == "ra_topk" else 4096, d)
    sae = recipe_of.build(sample, sample.mean(0), 0)
    if selection == "auto" and isinstance(sae.encoder, Linear) and fast_forms(device):
        sae.encoder.trust = Trust(fast_forms(device))
    hardware = accelerator(TrainConfig(tracker="none", device="cpu"), Path(mkdtemp()))
    training = Training(
        sae,
        torch.optim.Adam(sae.parameter_groups(), lr=LR, fused=True),
        FiringClock(n, device),
        Gauge(50, float(d), device),
        torch.nn.ModuleList(recipe_of.controllers()),
        dead=torch.zeros(0, dtype=torch.int64),
    )
    objective = recipe_of.objective()
    if encode:
        return torch.no_grad()(sae.encode)
    ENTERED.enter_context(kept_memory(device))  # as the loop does
    return lambda x: one_step(training, objective, hardware, x, 1.0, 0.5)


def sparsify(d: int, n: int, k: int, batch: int, encode: bool) -> Step:
    """sparsify/trainer.py with its default Signum. Its Triton kernels want a GPU."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD

    sae = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k))
    optimiser = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=LR), momentum=0.95)
    optimiser.train()
    fired = torch.zeros(n, dtype=torch.bool)
    if encode:
        return torch.no_grad()(sae.encode)

    def step(x: torch.Tensor) -> None:
        out = sae(x, dead_mask=None)
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        if sae.cfg.normalize_decoder:
            sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        if sae.cfg.normalize_decoder:
            sae.set_decoder_norm_to_unit_norm()

    return step


def saelens(d: int, n: int, k: int, batch: int, encode: bool) -> Step:
    """sae_lens/training/sae_trainer.py, _train_step."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n, k=k, device="cpu"))
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR)
    since, scores = torch.zeros(n), torch.zeros(n)
    if encode:
        return torch.no_grad()(sae.encode)

    def step(x: torch.Tensor) -> None:
        given = TrainStepInput(x, {}, torch.zeros(n, dtype=torch.bool), 0, False)
        out = sae.training_forward_pass(step_input=given)
        with torch.no_grad():
            fired = out.feature_acts.bool().float()
            since.add_(1)
            since[fired.sum(-2).bool()] = 0
            scores.add_(fired.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def overcomplete(d: int, n: int, k: int, batch: int, encode: bool, archetypal: bool = False) -> Step:
    """overcomplete/sae/train.py with monitoring off."""
    import matplotlib

    if not hasattr(matplotlib.cm, "get_cmap"):  # its import asks for what newer releases of matplotlib moved
        matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap
    from overcomplete.sae import RATopKSAE, TopKSAE
    from overcomplete.sae.trackers import DeadCodeTracker

    sae = (
        RATopKSAE(d, nb_concepts=n, top_k=k, points=torch.randn(n, d))
        if archetypal
        else TopKSAE(d, nb_concepts=n, top_k=k)
    )
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR)
    tracker = DeadCodeTracker(n, "cpu")
    sae.train()
    if encode:
        return torch.no_grad()(sae.encode)

    def step(x: torch.Tensor) -> None:
        optimiser.zero_grad()
        _, z, x_hat = sae(x)
        sae.get_dictionary()  # its loop passes it to the criterion
        loss = (x - x_hat).square().mean()
        tracker.update(z)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()

    return step


def dictionary_learning(d: int, n: int, k: int, batch: int, encode: bool) -> Step:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=100_000,
        activation_dim=d,
        dict_size=n,
        k=k,
        layer=0,
        lm_name="none",
        device="cpu",
        warmup_steps=1000,
        seed=0,
    )
    if encode:
        return torch.no_grad()(trainer.ae.encode)
    count = iter(range(1, 100_000))
    return lambda x: trainer.update(next(count), x)


WORKERS: dict[str, Callable[..., Step]] = {
    "limit": limit,
    "vsae": vsae,
    "vsae_exact": lambda *job: vsae(*job, selection="exact"),
    "vsae_ra": lambda *job: vsae(*job, recipe="ra_topk"),
    "sparsify": sparsify,
    "saelens": saelens,
    "overcomplete": overcomplete,
    "overcomplete_ra": lambda *job: overcomplete(*job, archetypal=True),
    "dictionary_learning": dictionary_learning,
}


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stream(d: int, batch: int) -> list[torch.Tensor]:
    """Batches of sparse sums of 4 d directions and some noise, at E|x|^2 = d: what selection has to tell apart in activations.

    As many as make each row rare: one batch learnt by heart is no stream, and its pre-activations come to lie closer than any training's.
    """
    atoms = F.normalize(torch.randn(4 * d, d), dim=1)
    found = []
    for _ in range(BATCHES):
        x = (torch.rand(batch, 4 * d) < 8 / (4 * d)).float() @ atoms + 0.05 * torch.randn(batch, d)
        found.append(x * (d / x.square().sum(1).mean()).sqrt())
    return found


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    d, n, k, batch = job["shape"]
    batches = itertools.cycle(stream(d, batch))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print must not be taken for an answer
    try:
        before = memory_mb() + 2 * n * d * 4 / 2**20
        step = WORKERS[job["name"]](d, n, k, batch, job["encode"])
        imported = memory_mb()
    except Exception as error:
        print(json.dumps({"problem": f"{type(error).__name__}: {error}"}), file=out, flush=True)
        return
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        counted = int(line)
        step(next(batches))
        start, work = time.perf_counter(), time.process_time()
        for _ in range(counted):
            step(next(batches))
        seconds, processor = (time.perf_counter() - start) / counted, (time.process_time() - work) / counted
        over = memory_mb() - max(before, imported)
        print(json.dumps({"seconds": seconds, "processor": processor, "memory_mb": over}), file=out, flush=True)


if __name__ == "__main__":
    main()
