"""Many SAEs in one pass over the data: each is what it would have been alone, also when the pass was killed on the way."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import vsae
from vsae import cli, config, jobs, sweeps
from vsae.activations import write_store
from vsae.recipes import RECIPES, BatchTopK, RATopK, TopK
from vsae.training import loop
from vsae.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = TrainConfig(
    tokens=12_000, batch_size=300, lr=3e-3, check_every=7, checkpoint_every=11, eval_every=20, tracker="none"
)
FILES = ("run.json", "cfg.json", "sae_weights.safetensors", "self_check.safetensors")


def with_(**changes):
    return TrainConfig(**{**vars(SETTINGS), **changes})


RUNS = {
    "topk": (TopK(96, 4), SETTINGS),
    "wide": (TopK(128, 8), with_(lr=1e-3, warmup=0.2)),
    "batch": (BatchTopK(64, 4), with_(eval_every=13, checkpoint_every=17)),
    "ra": (RATopK(48, 4), with_(normalise="standardise", tokens=8_000)),
}


class Counted(vsae.TensorSource):
    """Counts what is read, and may end in the middle, as a kill would."""

    def __init__(self, rows, halt_after=10**9):
        super().__init__(rows)
        self.counts, self.halt_after = Counter(), halt_after

    def moments(self):
        self.counts["moments"] += 1
        return super().moments()

    def batches(self, *args, **options):
        for batch in (iterator := super().batches(*args, **options)):
            self.counts["batches"] += 1
            if self.counts["batches"] > self.halt_after:
                raise KeyboardInterrupt
            yield_state.state = iterator.state
            yield batch


class yield_state:
    state = None


class Streamed:
    """A generator of batches with the `state` that the loop asks for."""

    def __init__(self, generator):
        self.generator = generator

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.generator)

    def state(self):
        return yield_state.state()


@pytest.fixture(scope="module")
def rows():
    return torch.randn(2500, 12, generator=torch.Generator().manual_seed(0)).relu()


def source(rows, halt_after=10**9):
    found = Counted(rows[:2000], halt_after)
    plain = found.batches
    found.batches = lambda *args, **options: Streamed(plain(*args, **options))
    return found


def val(rows):
    return vsae.TensorSource(rows[2000:])


@pytest.fixture(scope="module")
def alone(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name, (recipe, settings) in RUNS.items():
        vsae.train(source(rows), recipe, folder / name, settings, val(rows), progress=False)
    return folder


def same(folder, alone, name):
    for file in FILES:
        there = [
            (path / name / file).read_bytes() if (path / name / file).exists() else b"" for path in (folder, alone)
        ]
        assert there[0] == there[1], f"{name}/{file}"
    logs = [
        [json.loads(line) for line in (path / name / "log.jsonl").read_text().splitlines()] for path in (folder, alone)
    ]
    for log in logs:
        for line in log:
            del line["time"]
    assert logs[0] == logs[1]


def test_every_run_has_the_bytes_of_training_it_alone_and_the_data_is_read_once(rows, alone, tmp_path):
    read = source(rows)
    found = loop.sweep(read, {tmp_path / name: run for name, run in RUNS.items()}, val(rows), progress=False)
    assert [path.name for path in found] == list(RUNS)
    assert read.counts == {"moments": 1, "batches": -(-12_000 // 2000) * 7}  # six passes of seven batches
    for name in RUNS:
        same(tmp_path, alone, name)


@pytest.mark.parametrize("halts", [(11, 14), (23, 20)])
def test_a_killed_sweep_goes_on_although_its_runs_have_come_to_different_steps(rows, alone, tmp_path, halts):
    runs = {tmp_path / name: run for name, run in RUNS.items()}
    for halt_after in halts:
        with pytest.raises(KeyboardInterrupt):
            loop.sweep(source(rows, halt_after), runs, val(rows), progress=False)
    steps = {name: [path.name for path in sorted((tmp_path / name / "checkpoint").glob("step-*"))] for name in RUNS}
    assert len({tuple(found) for found in steps.values()}) > 1, steps
    loop.sweep(source(rows), runs, val(rows), progress=False)
    for name in RUNS:
        same(tmp_path, alone, name)


def test_runs_can_join_later_and_finished_ones_are_left(rows, alone, tmp_path):
    first = {tmp_path / name: RUNS[name] for name in ("topk", "ra")}
    loop.sweep(source(rows), first, val(rows), progress=False)
    before = (tmp_path / "topk" / "run.json").stat().st_mtime_ns
    loop.sweep(source(rows), first | {tmp_path / "wide": RUNS["wide"]}, val(rows), progress=False)
    assert (tmp_path / "topk" / "run.json").stat().st_mtime_ns == before
    same(tmp_path, alone, "wide")


def test_a_run_that_breaks_is_given_up_and_the_others_go_on(rows, alone, tmp_path, capfd):
    runs = {tmp_path / "topk": RUNS["topk"], tmp_path / "wild": (TopK(96, 4), with_(lr=1e30))}
    for _ in range(2):  # the second call leaves it given up
        found = loop.sweep(source(rows), runs, val(rows))
        assert isinstance(found[tmp_path / "wild"], loop.Failed) and "is nan" in found[tmp_path / "wild"].why
    assert "wild is given up: training stopped" in capfd.readouterr().err
    same(tmp_path, alone, "topk")
    with pytest.raises(FloatingPointError, match="training stopped"):
        vsae.train(source(rows), TopK(96, 4), tmp_path / "lone", with_(lr=1e30), progress=False)


def test_what_decides_the_stream_is_one_for_all(rows, tmp_path):
    runs = {tmp_path / "a": RUNS["topk"], tmp_path / "b": (TopK(96, 4), with_(seed=1))}
    with pytest.raises(ValueError, match=r"share training\.seed, and here it is 0 and 1"):
        loop.sweep(source(rows), runs)


def test_a_grid_is_every_combination_and_a_list_is_itself():
    found = sweeps.planned({"k": [4, 8], "lr": [0.1, 1e-3]}, TopK(96, 4), SETTINGS, RECIPES)
    assert list(found) == ["topk-k4-lr0.1", "topk-k4-lr0.001", "topk-k8-lr0.1", "topk-k8-lr0.001"]
    assert found["topk-k8-lr0.1"] == (TopK(96, 8), with_(lr=0.1))
    listed = sweeps.planned([{"recipe": "relu", "n": 32}, {"k": 2}], TopK(96, 4), SETTINGS, RECIPES)
    assert listed == {"relu-n_latents32": (RECIPES["relu"](32), SETTINGS), "topk-k2": (TopK(96, 2), SETTINGS)}


def test_a_recipe_without_a_field_is_not_multiplied_by_it_and_keeps_its_own_defaults():
    found = sweeps.planned({"recipe": ["topk", "relu"], "k": [4, 8]}, TopK(96, 4), SETTINGS, RECIPES)
    assert list(found) == ["topk-k4", "topk-k8", "relu"]
    assert found["relu"][0] == RECIPES["relu"](96)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"kk": [1]}, "unknown field 'kk': did you mean 'k'"),
        ({"recipe": ["topkk"]}, "a recipe 'topkk': did you mean 'topk'"),
        ({"k": [4, 200]}, r"run k=200: .*k is 200, but n_latents is 96"),
        ({"k": ["many"]}, "run k=many: k .*valid integer"),
        ({"seed": [1, 2]}, r"share training\.seed"),
        ([{"k": 4}, {"k": 4}], "asks for topk-k4 twice"),
        ({}, "has no runs"),
    ],
)
def test_what_a_sweep_gets_wrong_is_named(wanted, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweeps.planned(wanted, TopK(96, 4), SETTINGS, RECIPES)


def test_the_command_line_and_yaml_say_the_same(tmp_path):
    (tmp_path / "job.yaml").write_text("out: here\nsweep: {k: [4, 8], recipe: [topk, ra_topk]}\n")
    kind = jobs.train_job(TopK)
    read = config.parse(kind, ["--config", str(tmp_path / "job.yaml")], "test")
    typed = config.parse(kind, ["--out", "here", "--sweep", "k=4,8", "recipe=topk,ra_topk"], "test")
    assert read.sweep == typed.sweep == {"k": [4, 8], "recipe": ["topk", "ra_topk"]}
    with pytest.raises(SystemExit):
        config.parse(kind, ["--out", "here", "--sweep", "k"], "test")


def test_a_sweep_leaves_a_table_and_a_picture(rows, tmp_path, capsys):
    job = jobs.train_job(TopK)(tmp_path, sae=TopK(96, 4), training=with_(tokens=1500), sweep={"k": [2, 4]})
    found = cli.fit(job, source(rows), val(rows))
    table = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["run"] for row in table["runs"]] == ["topk-k2", "topk-k4"] and table["nmse_floor"] == 1
    assert table["runs"][0]["nmse"] == found[tmp_path / "topk-k2"].meta["metrics"]["val"]["nmse"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "topk-k4  NMSE" in capsys.readouterr().out
    broken = jobs.train_job(TopK)(
        tmp_path / "b", sae=TopK(96, 4), training=with_(tokens=3000), sweep={"lr": [1e30, 1e-3]}
    )
    with pytest.raises(FloatingPointError, match=r"1 of 2 runs were given up\. .*topk-lr1e_?\+?30"):
        cli.fit(broken, source(rows), val(rows))


def test_the_command_trains_a_sweep_from_a_store(rows, tmp_path, capsys):
    def chunks(first):
        for batch in range(first, 25):
            samples = [{"key": f"{batch}-{row}", "path": "", "caption": None, "label": None} for row in range(10)]
            values = rows[batch * 100 :][:100].view(10, 10, 12)
            tokens = SimpleNamespace(values=values, kinds=torch.zeros(10, 10, dtype=torch.uint8), grid=None)
            yield SimpleNamespace(batch=batch, samples=samples, bad=[], activations={"blocks.1": tokens})

    request = {"model": {"name": "m", "weights": "w", "preprocessing": {}}, "data": {"n": 250}}
    write_store(tmp_path / "store", chunks, request, rows_per_shard=700, kind_names=("patch",))
    settings = ["--training.tokens", "2000", "--training.batch-size", "200", "--training.tracker", "none"]
    wanted = ["--sae.n-latents", "32", "--sweep", "k=2,4", "recipe=topk,batchtopk"]
    cli.main(["train", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), *settings, *wanted])
    names = ["batchtopk-k2", "batchtopk-k4", "topk-k2", "topk-k4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == names
    assert all((tmp_path / "out" / name / "run.json").exists() for name in names)
    assert "floor: NMSE 1" in capsys.readouterr().out
