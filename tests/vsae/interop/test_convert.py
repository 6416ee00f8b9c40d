"""vsae convert: what it writes computes the same, and says of itself what is known and no more."""

import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import vsae
from vsae import about, cli, interop
from vsae.activations.fingerprint import check
from vsae.activations.writer import write_store
from vsae.interop.convert import convert as convert_them
from vsae.recipes import RECIPES
from vsae.run import Run
from vsae.sparsifiers import ReLU, TopK

D, N, K = 12, 48, 5
SITES = {"blocks.1": 12, "blocks.2": 6}


@pytest.fixture
def theirs(tmp_path, make):
    interop.write(make(TopK(K)), tmp_path / "theirs", "sparsify")
    return tmp_path / "theirs"


def convert(*words):
    cli.main(["convert", *map(str, words)])


@pytest.mark.parametrize("to", ["saelens", "dictionary_learning", "sparsify"])
def test_any_library_to_any_other_and_home(tmp_path, theirs, make, agree, to):
    convert(theirs, tmp_path / "there", "--to", to)
    assert interop.recognised(tmp_path / "there") == to
    convert(tmp_path / "there", tmp_path / "run")
    agree(Run.load(tmp_path / "run").sae, make(TopK(K)))


def test_what_a_format_cannot_express_is_said_loudly_and_once(tmp_path, theirs, capsys):
    convert(theirs, tmp_path / "there", "--to", "overcomplete")
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("vsae: WARNING: overcomplete has no decoder bias")
    assert out == f"wrote {tmp_path / 'there'} (overcomplete)\n"
    convert(tmp_path / "there", tmp_path / "back", "--to", "sparsify")
    assert capsys.readouterr().err == ""


TOPK = "saelens sparsify dictionary_learning saev overcomplete"
THRESHOLD = "saelens dictionary_learning saev overcomplete"
WRITTEN = {
    **dict.fromkeys(("relu", "sae_v"), "saelens dictionary_learning saev openai overcomplete"),
    "abs_topk": "saelens",
    "groupmax": "sparsify",
    "gated": "saelens dictionary_learning",
    **dict.fromkeys(("feature_choice", "gba"), "saelens dictionary_learning overcomplete"),
    **dict.fromkeys(("topk", "ra_topk", "a_topk", "tied", "vsae"), TOPK),
    **dict.fromkeys(("batchtopk", "jumprelu", "matryoshka", "ra_batchtopk"), THRESHOLD),
}
"""Those that the others cannot express, pursuits of normalised rows and polynomial decoders among them, are refused by all."""


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_out_whole_or_is_refused_or_is_said_to_lack_something(tmp_path, name, x):
    """As it is saved, after a normalisation by which no bias is left 0."""
    recipe = RECIPES[name]
    options = {"n_latents": N, "k": 6}
    made = recipe(**{field: value for field, value in options.items() if field in recipe.__dataclass_fields__})
    sample = torch.randn(256, D, generator=torch.Generator().manual_seed(3))
    sae = made.build(sample, sample.mean(0), 0).fuse(torch.linspace(-1, 1, D), torch.tensor(2.0))
    ours, written = sae(x), []
    for format in interop.WRITERS:
        out = tmp_path / format
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                interop.write(sae, out, format)
            except ValueError as error:
                assert re.search("computes the same|this SAE is another", str(error)) and not any(out.iterdir())
                continue
        written.append(format)
        theirs = interop.read(out).sae(x)
        lacking = sae.bias if format == "overcomplete" else 0  # it has no decoder bias, and says so
        assert bool(said) == (format == "overcomplete" or (format == "saev" and type(sae.sparsifier) is TopK))
        if not (format == "saev" and said):  # its TopK keeps negative ones
            torch.testing.assert_close(theirs.code.dense(N), ours.code.dense(N), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(theirs.x_hat + lacking, ours.x_hat, atol=1e-4, rtol=1e-5)
    assert written == WRITTEN.get(name, "").split()


def test_an_imported_run_says_what_it_is(tmp_path, theirs):
    convert(theirs, tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert run.meta["recipe"] == {"name": "sparsify", "fields": {}}
    assert run.meta["metrics"] == {"val": None} and run.meta["training"] is None
    assert run.meta["imported"]["self_check_rows"] == "random"
    assert set(run.meta["imported"]["files"]) == {"cfg.json", "sae.safetensors"}
    words = about.describe(tmp_path / "run")
    assert "sparsify SAE of an unnamed model, theirs output: 48 latents" in words
    assert "its self-check has random rows" in words and "held out nothing" in words


def test_the_self_check_of_an_imported_run_is_one(tmp_path, theirs):
    convert(theirs, tmp_path / "run")
    meta = json.loads((tmp_path / "run/run.json").read_text())
    meta["sae"]["sparsifier"]["k"] = K + 1
    (tmp_path / "run/run.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="fails its self-check"):
        Run.load(tmp_path / "run")


def test_a_run_of_ours_goes_out_with_what_it_is_of(tmp_path, x):
    fingerprint = {"model": {"name": "vit_test", "weights": "ab"}, "site": "blocks.3", "side": "input"}
    config = vsae.TrainConfig(tokens=2_000, batch_size=64, tracker="none")
    source = vsae.TensorSource(torch.cat([x, -x, 2 * x]), fingerprint)
    run = vsae.train(source, vsae.recipes.TopK(n_latents=N, k=K), tmp_path / "run", config, progress=False)
    convert(tmp_path / "run", tmp_path / "out", "--to", "dictionary_learning")
    found = interop.read(tmp_path / "out")
    assert (found.model, found.site, found.config["buffer"]["io"]) == ("vit_test", "blocks.3", "in")
    torch.testing.assert_close(found.sae(x).x_hat, run.sae(x).x_hat, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("theirs", "new", "--to", "onnx"), "no SAE can be written as 'onnx': choose from vsae, saelens"),
        (("theirs", "theirs"), "theirs is there already"),
        (("nothing", "new"), "nothing is neither a local path nor a repository that can be reached"),
        (("empty", "new"), "is of no format known here"),
        (("relu", "new", "--to", "sparsify"), "sparsify has nothing that computes the same as ReLU"),
        (("theirs", "new", "--options", "top_k=3"), "of sparsify, which takes no such option"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, theirs, make, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    interop.write(make(ReLU()), tmp_path / "relu", "saelens")
    with pytest.raises(SystemExit) as stopped:
        convert(*words)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in said and said.count("\n") == 1
    assert not (tmp_path / "new/run.json").exists()


def test_a_store_gives_an_import_its_rows_and_what_it_belongs_to(tmp_path, theirs):
    def chunks(first):
        for batch in range(first, 4):
            samples = [{"key": f"{batch}-{i}", "path": "", "width": 1, "height": 1} for i in range(20)]
            values = torch.randn(20, 5, D, generator=torch.Generator().manual_seed(batch))
            kinds = torch.full((20, 5), 0, dtype=torch.uint8)
            sites = {name: SimpleNamespace(values=values[..., :d], kinds=kinds, grid=None) for name, d in SITES.items()}
            yield SimpleNamespace(batch=batch, samples=samples, bad=[], activations=sites)

    request = {"model": {"name": "vit", "weights": "abc", "preprocessing": {"resize": 8}}, "data": {"name": "photos"}}
    store = write_store(tmp_path / "store", chunks, request, kind_names=("patch", "pad"), dtype="float32")
    convert(theirs, tmp_path / "run", "--store", store.path, "--site", "blocks.1")
    run = Run.load(tmp_path / "run")
    check(run.fingerprint, store.site("blocks.1").fingerprint)
    assert run.meta["imported"]["self_check_rows"] == str(store.path)
    rows = load_file(tmp_path / "run/self_check.safetensors")["rows"]
    assert rows.shape == (256, D) and run.meta["metrics"] == {"val": None}
    with pytest.raises(ValueError, match=r"the SAE reads 12 numbers a row, and .* holds 6: choose another site"):
        convert_them(theirs, tmp_path / "other", store=store.path, site="blocks.2")
