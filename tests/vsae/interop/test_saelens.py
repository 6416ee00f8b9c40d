"""SAELens loads what we write and computes what we compute; we read what SAELens writes (its own package makes the files), and compute the same."""

import json

import pytest
import torch
from sae_lens import SAE as TheirSAE

import vsae
from vsae import interop
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.interop import saelens
from vsae.pursuit import MatchingPursuit
from vsae.recipes import RECIPES
from vsae.sae import SAE
from vsae.sparsifiers import AbsTopK, ReLU, Sparsifier, Threshold, TopK
from vsae.transcoder import Transcoder

D, N = 12, 48
FINGERPRINT = {"model": {"name": "vit_test", "weights": "ab"}, "site": "blocks.3", "side": "input"}
ARCHITECTURES = {"relu": "standard", "topk": "topk", "abs_topk": "abstopk", "batchtopk": "jumprelu", "ra_topk": "topk"}


@pytest.fixture(scope="module")
def rows():
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(D, D, generator=draw)
    return 5 * (torch.randn(2048, D, generator=draw).relu() @ mixing + 1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request, rows, tmp_path_factory):
    recipe = RECIPES[request.param]
    options = {"k": 4} if "k" in recipe.__dataclass_fields__ else {}
    source = vsae.TensorSource(rows, FINGERPRINT)
    config = vsae.TrainConfig(tokens=12_000, batch_size=256, lr=3e-3, normalise="standardise", tracker="none")
    return request.param, vsae.train(
        source, recipe(N, **options), tmp_path_factory.mktemp("run"), config, progress=False
    )


def test_codes_and_reconstructions_agree(trained, rows):
    name, run = trained
    theirs = TheirSAE.load_from_disk(run.path)
    assert theirs.cfg.architecture() == ARCHITECTURES[name]
    x = rows[:512]
    ours = run.sae(x)
    code = theirs.encode(x)
    assert (code != 0).any()
    torch.testing.assert_close(code, ours.code.dense(N), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.decode(code), ours.x_hat, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(x), ours.x_hat, atol=1e-5, rtol=1e-5)


def test_provenance_travels_along(trained):
    _, run = trained
    metadata = TheirSAE.load_from_disk(run.path).cfg.metadata
    assert metadata.hook_name == "blocks.3:input"
    assert metadata.model_name == "vit_test"
    assert metadata.vsae["seed"] == 0 and metadata.vsae["normalisation"]["mode"] == "standardise"


def test_what_saelens_cannot_express_gets_no_config(tmp_path, rows):
    class Odd(Sparsifier):
        def forward(self, pre):
            return pre.top(1)

    weight = torch.eye(D)
    odd = SAE.from_weights(weight, torch.zeros(D), weight, torch.zeros(D), Odd())
    assert saelens.config(odd, FINGERPRINT) is None
    with pytest.raises(
        ValueError, match="SAELens has no architecture that computes the same as SAE, Linear, Odd, Free"
    ):
        interop.write(odd, tmp_path, "saelens")
    assert not any(tmp_path.iterdir())


PLAIN = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
THEIRS = {
    "standard": {},
    "standard, b_dec in b_enc": {"apply_b_dec_to_input": False},
    "topk": {"k": 5, "rescale_acts_by_decoder_norm": False},
    "topk, by decoder norm": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "topk, layer norm": {"k": 5, "rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"},
    "standard, row norm": {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
    "jumprelu, layer norm": {"normalize_activations": "layer_norm"},
    "abstopk": {"k": 5, "rescale_acts_by_decoder_norm": False},
    "abstopk, by decoder norm": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {},
    "gated": {},
    "gated, b_dec in b_enc": {"apply_b_dec_to_input": False},
    "matching_pursuit": {"max_iterations": 6, "residual_threshold": 0.0, "stop_on_duplicate_support": False},
    "transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": 7, "apply_b_dec_to_input": False},
}


def theirs_of(case):
    """An SAE of SAELens with every parameter random, so that nothing is right by being 0."""
    metadata = {"model_name": "vit_test", "hook_name": "blocks.3.hook"}
    made = TheirSAE.from_dict(PLAIN | {"architecture": case.split(",")[0], "metadata": metadata} | THEIRS[case])
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * (0.3 if name.startswith("b_") else 1))
        if hasattr(made, "threshold"):
            made.threshold.sub_(0.2)  # some are below 0, where theirs is a ReLU
        if case.startswith("matching"):
            made.W_dec.div_(made.W_dec.norm(dim=1, keepdim=True))
    return made


@pytest.fixture(params=THEIRS)
def saved(request, tmp_path):
    theirs = theirs_of(request.param)
    theirs.save_model(tmp_path)
    return theirs, interop.read(tmp_path)


def test_what_they_write_computes_the_same_here(saved, rows):
    theirs, found = saved
    x = rows[:256] / 5
    sae, expected = found.sae, theirs.encode(x)
    output = sae(x)
    code = output.code.dense(sae.n_latents)
    if (norm := theirs.cfg.normalize_activations) != "none":  # codes in the units of x, then the row's own numbers
        size = x.std(1, keepdim=True) if norm == "layer_norm" else x.norm(dim=1, keepdim=True) / D**0.5
        more = [size] + ([x.mean(1, keepdim=True)] if norm == "layer_norm" else [])
        expected = torch.cat([expected * size, *more], 1)
    assert (expected != 0).float().mean() > 0.02
    torch.testing.assert_close(code, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, theirs(x), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sae.decode(output.code), output.x_hat) if not isinstance(sae, Transcoder) else None
    assert (found.format, found.model, found.site) == ("saelens", "vit_test", "blocks.3.hook")
    assert set(found.files) == {"cfg.json", "sae_weights.safetensors"} and found.notes == ()


def test_what_was_read_can_be_written_again(saved, rows, tmp_path):
    theirs, found = saved
    if theirs.cfg.normalize_activations != "none":
        with pytest.raises(ValueError, match="no architecture that computes the same as SAE, RowNormalised"):
            interop.write(found.sae, tmp_path / "again", "saelens")
        return
    interop.write(found.sae, tmp_path / "again", "saelens", FINGERPRINT)
    again = TheirSAE.load_from_disk(tmp_path / "again")
    x = rows[:256] / 5
    assert again.cfg.architecture() == theirs.cfg.architecture()
    torch.testing.assert_close(again.encode(x), theirs.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(x), theirs(x), atol=1e-4, rtol=1e-5)


def test_a_centred_transcoder_is_written_without_its_centre(tmp_path, rows):
    draw = torch.Generator().manual_seed(2)
    weight, bias, atoms, b_dec, b_in, skip = (
        torch.randn(shape, generator=draw) for shape in ((N, D), (N,), (N, 7), (7,), (D,), (7, D))
    )
    ours = Transcoder(Linear(weight, bias), ReLU(), Free(atoms, unit_norm=False), b_dec, b_in=b_in, skip=skip)
    interop.write(ours, tmp_path, "saelens")
    theirs = TheirSAE.load_from_disk(tmp_path)
    torch.testing.assert_close(theirs(rows[:64] / 5), ours(rows[:64] / 5).x_hat, atol=1e-4, rtol=1e-5)


def ours_of(sparsifier, encoder=None):
    draw = torch.Generator().manual_seed(3)
    W_enc, W_dec = torch.randn(D, N, generator=draw), torch.randn(N, D, generator=draw)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    b_enc, b_dec = torch.randn(N, generator=draw), torch.randn(D, generator=draw)
    return SAE(encoder or Linear(W_enc.T, b_enc), sparsifier, Free(W_dec, unit_norm=False), b_dec).eval()


@pytest.mark.parametrize(
    ("sae", "why"),
    [
        (ours_of(Threshold(torch.full((N,), -0.5))), "a threshold below 0"),
        (ours_of(AbsTopK(4), MatchingPursuit()), "matching pursuit of the largest magnitudes"),
        (ours_of(TopK(4), MatchingPursuit(signed=True)), "a signed pursuit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_compute_something_else_is_refused(sae, why, tmp_path):
    with pytest.raises(ValueError, match="no architecture that computes the same"):
        interop.write(sae, tmp_path, "saelens")


NEW = ("metadata", "architecture", "k", "reshape_activations")


def flat(cfg, **change):
    """The same configuration as SAELens 5 wrote it."""
    old = {name: value for name, value in cfg.items() if name not in NEW}
    return old | {"hook_point": "blocks.3.hook_z", "model_name": "old", "normalize_activations": False} | change


def test_files_of_before_version_6_are_read(tmp_path, rows):
    theirs = theirs_of("topk")
    theirs.save_model(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    old = flat(cfg, activation_fn_str="topk", activation_fn_kwargs={"k": 5})
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    with pytest.warns(UserWarning, match="outputs of attention heads side by side"):
        found = interop.read(tmp_path)
    assert (found.model, found.site) == ("old", "blocks.3.hook_z") and len(found.notes) == 1
    x = rows[:64] / 5
    torch.testing.assert_close(found.sae(x).x_hat, theirs(x), atol=1e-5, rtol=1e-5)
    (tmp_path / "cfg.json").write_text(json.dumps(flat(cfg, activation_fn_str="tanh-relu")))
    with pytest.raises(ValueError, match="activation function is tanh-relu"):
        interop.read(tmp_path)


def test_an_unknown_scale_and_early_stops_are_said(tmp_path):
    theirs_of("matching_pursuit").save_model(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    change = {"normalize_activations": "expected_average_only_in", "stop_on_duplicate_support": True}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.warns(UserWarning) as said:
        assert len(interop.read(tmp_path).notes) == 2
    text = " ".join(str(each.message) for each in said)
    assert "does not say by what factor" in text and "every row takes 6 steps" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "temporal"}, "a 'temporal' of SAELens, which has no counterpart here"),
        ({"architecture": "batchtopk"}, "a checkpoint of a training of batchtopk: save it with"),
        ({"normalize_activations": "covariance_whitening"}, "normalises activations by covariance_whitening"),
        ({"architecture": "topk", "k": None}, "does not say what k is"),
        ({"architecture": "jumprelu"}, "has no tensor threshold"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, change, sentence):
    theirs_of("standard").save_model(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.raises(ValueError, match=sentence):
        interop.read(tmp_path)


def test_shapes_that_disagree_are_said(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs_of("standard").save_model(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    save_file(load_file(file) | {"W_dec": torch.ones(N - 1, D)}, file)
    with pytest.raises(ValueError, match=r"W_dec is \[47, 12\], but should be \[n, d\] with d = 12, n = 48"):
        interop.read(tmp_path)
