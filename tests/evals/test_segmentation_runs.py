"""The whole job on images whose masks are known: what was planted is found, by the command too, whatever the batch size; and a person's mistakes."""

import io
import json
import tarfile
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from evals.masks import NONE, Masks, classes, read, read_names
from evals.segmentation_runs import evaluate
from evals.segmentation_shown import table
from modalities.data import open_dataset
from vsae import cli
from vsae.activations import write_store
from vsae.files import read_json
from vsae.run import Run, save_run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

N, GRID, CELL, D, CLASSES = 60, (4, 4), 8, 16, 5
NAMES = ("sky", "road", "car", "dog", "cat")
VOID = 9


class Tokens(NamedTuple):
    values: torch.Tensor
    kinds: torch.Tensor
    grid: tuple


class Chunk(NamedTuple):
    batch: int
    samples: list
    bad: list
    activations: dict


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(stores, masks' tar, atoms): a class token, then patches; class c's patches have atom c, and every patch one of the other atoms."""
    home = tmp_path_factory.mktemp("segmentation")
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.standard_normal((D, D)))[0]
    sites = {}
    with tarfile.open(home / "masks.tar", "w") as tar:
        for name in ("fit", "report"):
            some = np.stack([rng.choice(CLASSES, 2, replace=False) for _ in range(N)])
            cells = np.take_along_axis(some, rng.integers(0, 2, (N, GRID[0] * GRID[1])), 1)
            values = np.zeros((N, 1 + cells.shape[1], D), np.float32)
            values[:, 1:] = rng.uniform(1, 2, cells.shape)[..., None] * atoms[cells]
            values += 0.5 * atoms[rng.integers(CLASSES, D, values.shape[:2])]
            for i in range(N):
                mask = np.kron(cells[i].reshape(GRID), np.ones((CELL, CELL))).astype(np.uint8)
                mask[0, 0] = VOID  # one pixel of a patch: no majority
                for end, pixels in (("png", np.repeat(mask[..., None], 3, 2)), ("mask.png", mask)):
                    content = png(pixels)
                    info = tarfile.TarInfo(f"{name}{i}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
            kinds = torch.tensor([1] + [0] * cells.shape[1], dtype=torch.uint8).expand(20, -1)

            def chunks(start, name=name, values=values, kinds=kinds):
                for batch in range(start, N // 20):
                    about = dict.fromkeys(("path", "caption", "label", "width", "height"))
                    rows = range(batch * 20, batch * 20 + 20)
                    samples = [about | {"key": f"{name}{i}"} for i in rows]
                    tokens = Tokens(torch.from_numpy(values[rows.start : rows.stop]), kinds, GRID)
                    yield Chunk(batch, samples, [], {"layer": tokens})

            seen = {"resize": None, "crop": None}
            request = {"model": {"name": "planted", "weights": "abc", "preprocessing": seen}, "preprocessing": seen}
            request |= {"data": {"name": name}}
            sites[name] = write_store(
                home / name, chunks, request, dtype="float32", kind_names=("patch", "cls", "pad")
            ).site()
    return sites, home / "masks.tar", torch.from_numpy(atoms).float()


def run_of(site, atoms, path, part=(0.0, 1.0), store=None):
    sae = SAE.from_weights(atoms.T.contiguous(), torch.zeros(len(atoms)), atoms, torch.zeros(D), TopK(2))
    about = {"select": {"kinds": ["patch"], "part": list(part)}, "normalisation": {"mode": "none"}}
    meta = {"recipe": {"name": "topk", "fields": {}}, "self_check": {"l0": 2.0}}
    return Run(path, sae, meta | {"fingerprint": site.fingerprint | about | {"store": store}})


def named(values):
    return tuple(NAMES[value] for value in values)


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    sites, tar, atoms = world
    masks = tuple(read(open_dataset(tar), sites[name]) for name in ("fit", "report"))
    out = tmp_path_factory.mktemp("out")
    run = run_of(sites["fit"], atoms, out / "run")
    return evaluate(run, sites["fit"], sites["report"], masks, named, out, dense=8, resamples=30), out, masks, run


def test_latents_of_the_classes_are_found_and_written_beside_their_baselines(found):
    comparison, out, _, _ = found
    run, *others = comparison.methods
    assert [each.latent for each in run.found.classes] == list(range(CLASSES))
    assert run.mean_ap.value == pytest.approx(1) and run.mean_ap.interval[0] > 0.999
    assert run.mean_ap.floor == pytest.approx(0.2, abs=0.02) and run.l0 == pytest.approx(2, abs=0.01)
    names = [each.name for each in others]
    assert names == ["random dictionary", "neurons 8", "PCA 8", "k-means 16", "semi-NMF 8"]
    for each in others:
        # of one-hot classes, the ends of a few components are as good as atoms
        assert each.mean_ap.value < 0.95 or each.name in ("PCA 8", "semi-NMF 8")
        assert each.more_ap.value == pytest.approx(1 - each.mean_ap.value, abs=1e-9)
        low, high = each.more_ap.interval
        assert low <= each.more_ap.value <= high
    written = read_json(out / "result.json")
    assert written["value"] == pytest.approx(1) and written["n"] == {"fit": 960, "report": 960, "classes": 5}
    assert written["details"]["methods"][0]["found"]["classes"][0]["name"] == "sky"
    assert (out / "segmentation.png").read_bytes().startswith(b"\x89PNG")
    assert table(comparison).row_count == 7


def test_proposals_from_image_labels_find_latents_of_other_classes_or_say_so(found):
    """Latents stand for one class each, so labels of some classes point at no latent of another: yield is what random orders have."""
    audit = found[0].audit
    assert audit.known == ("sky", "car", "cat") and audit.audited == ("road", "dog")
    assert audit.share * audit.live == pytest.approx(2)
    assert set(audit.order[:3]) == {0, 2, 4}
    assert audit.yields[0].budget == 10 and audit.yields[-1].grounded.value == 2
    assert audit.yields[0].grounded.floor == pytest.approx(10 * audit.share)


def test_results_do_not_depend_on_the_batch_size(world, found, tmp_path):
    sites, _, _ = world
    first, _, masks, run = found
    again = evaluate(run, sites["fit"], sites["report"], masks, named, tmp_path, dense=8, resamples=30, batch_size=37)
    for a, b in zip(first.methods, again.methods, strict=True):
        assert a.mean_ap.value == pytest.approx(b.mean_ap.value, abs=1e-6), a.name
        assert a.probe_r.value == pytest.approx(b.probe_r.value, abs=1e-6), a.name
        assert a.mean_iou.interval == pytest.approx(b.mean_iou.interval, abs=1e-6), a.name
    assert first.audit.yields == again.audit.yields and first.audit.order[:3] == again.audit.order[:3]


def test_shuffled_masks_give_the_floor(world, found, tmp_path):
    sites, _, _ = world
    _, _, masks, run = found
    rng = np.random.default_rng(0)
    shuffled = tuple(
        Masks(rng.permutation(each.labels.ravel()).reshape(each.labels.shape), each.without) for each in masks
    )
    lost = evaluate(run, sites["fit"], sites["report"], shuffled, named, tmp_path, dense=8, resamples=30)
    run_of_them = lost.methods[0]
    assert run_of_them.mean_ap.value == pytest.approx(run_of_them.mean_ap.floor, abs=0.03)
    assert abs(run_of_them.probe_r.value) < 0.02 and run_of_them.mean_ap.interval[0] < run_of_them.mean_ap.value


def test_the_command_reads_masks_names_and_one_store_in_halves(world, tmp_path, capsys):
    sites, tar, atoms = world
    run = run_of(sites["fit"], atoms, tmp_path / "run")
    run.path.mkdir()
    save_run(
        run.path, run.sae, sites["fit"].read(0, 100).values, {k: v for k, v in run.meta.items() if k != "self_check"}
    )
    (tmp_path / "names.json").write_text(json.dumps({str(at): name for at, name in enumerate(NAMES)}))
    stores = [str(sites[name].store.path) for name in ("fit", "report")]
    options = ["--masks", str(tar), "--classes", str(tmp_path / "names.json"), "--dense", "4", "--resamples", "5"]
    given = ["eval", "segmentation", str(run.path)]
    cli.main([*given, *stores, *options, "--out", str(tmp_path / "two"), "--ignore", "1"])
    written = read_json(tmp_path / "two" / "result.json")
    assert written["value"] == pytest.approx(1) and written["details"]["classes"] == ["sky", "car", "dog", "cat"]
    cli.main([*given, stores[1], *options, "--out", str(tmp_path / "one")])
    written = read_json(tmp_path / "one" / "result.json")
    assert written["splits"]["fit"]["select"]["part"] == [0.0, 0.5] and written["n"]["report"] < 960
    assert "One latent a class" in capsys.readouterr().out
    for arguments, sentence in (
        ([*given], "segmentation needs a run and one store or two"),
        ([*given, *stores, "--masks", str(tmp_path / "gone.tar")], "gone.tar"),
        ([*given, *stores], "give --masks"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_mistakes_are_named(world, found, tmp_path):
    sites, _, atoms = world
    _, _, masks, run = found
    other = Run(run.path, run.sae, run.meta | {"fingerprint": run.fingerprint | {"site": "elsewhere"}})
    with pytest.raises(ValueError, match="do not belong together"):
        evaluate(other, sites["fit"], sites["report"], masks, named, tmp_path)
    own = run_of(sites["report"], atoms, tmp_path / "own", store=sites["report"].fingerprint["store"])
    with pytest.raises(ValueError, match="was trained on all of"):
        evaluate(own, sites["fit"], sites["report"], masks, named, tmp_path)
    empty = Masks(np.full_like(masks[0].labels, NONE), N)
    with pytest.raises(ValueError, match="no patch of the report split has a class"):
        evaluate(run, sites["fit"], sites["report"], (masks[0], empty), named, tmp_path)
    one = Masks(np.where(masks[0].labels == 0, 0, NONE), 0)
    with pytest.raises(ValueError, match="fewer than two classes"):
        evaluate(run, sites["fit"], sites["report"], (one, masks[1]), named, tmp_path)
    plain = tmp_path / "photos"
    plain.mkdir()
    Image.new("RGB", (8, 8)).save(plain / "fit0.png")
    with pytest.raises(ValueError, match="has a mask in that dataset"):
        read(open_dataset(plain), sites["fit"])
    (tmp_path / "names.json").write_text("3")
    with pytest.raises(ValueError, match="names no classes"):
        read_names(tmp_path / "names.json", [0])
    assert read_names(None, [0, 7]) == ("0", "7")


def test_a_patch_is_of_its_majority_or_of_its_foreground():
    kinds, counts = np.array([-1, 0, 3, 5]), np.array([[0, 60, 40, 0], [0, 50, 25, 25], [0, 95, 0, 5], [90, 5, 5, 0]])
    assert classes(kinds, counts).tolist() == [0, 0, 0, -1]
    assert classes(kinds, counts, "foreground").tolist() == [3, 3, 5, -1]
    assert classes(kinds, counts, "foreground", least=0.3).tolist() == [3, 3, 0, -1]
    assert classes(np.array([2, 4]), np.array([[50, 50]])).tolist() == [2], "of equals the smaller number"
