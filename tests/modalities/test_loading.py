"""What `modalities.load` refuses whatever the family, and what the hub refuses."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import open_clip
import pytest
import timm
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import save_for_hf

import modalities


def test_an_unknown_family_and_an_option_of_another_family_are_named():
    with pytest.raises(ValueError, match="unknown model family 'video': choose one of vision"):
        modalities.load("video", "x")
    with pytest.raises(ValueError, match=r"family 'llm' take no option 'img_size': choose from .*length, padding"):
        modalities.load("llm", "x", img_size=3)
    with pytest.raises(ValueError, match="text encoders take no option 'img_size'"):
        modalities.load("diffusion", "x", img_size=3)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine whose every model is gated, as huggingface.co answers for one, or is not there: name -> answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            gated = "/gated/" in self.path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path), raising=False)
    yield
    server.shutdown()


FAMILIES = [
    ("llm", ""),
    ("llava", ""),
    ("diffusion", ""),
    ("clip", "hf-hub:"),
    ("clip", ""),
    ("vision", "hf-hub:"),
    ("vision", ""),
]


@pytest.mark.parametrize(("family", "scheme"), FAMILIES)
def test_a_gated_model_says_what_to_do_and_a_missing_one_that_it_is_missing(hub, family, scheme):
    with pytest.raises(OSError, match=r"cannot load .*gated/model \(it is gated: accept its terms") as found:
        modalities.load(family, f"{scheme}gated/model")
    assert "\n" not in str(found.value)
    with pytest.raises(OSError, match=r"cannot load .*nobody/nothing: .") as found:
        modalities.load(family, f"{scheme}nobody/nothing")
    assert "\n" not in str(found.value)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOWER = {"width": 32, "layers": 1}


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """organisation/name -> a folder for its files in the hub's cache, which is all there is of the hub."""
    from transformers.utils import hub as transformers_hub

    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers_hub, "TRANSFORMERS_CACHE", str(tmp_path), raising=False)

    def folder(repository):
        root = tmp_path / f"models--{repository.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs/main").write_text(COMMIT)
        (root / "snapshots" / COMMIT).mkdir(parents=True)
        return root / "snapshots" / COMMIT

    return folder


def test_names_of_the_hub_are_loaded_from_its_cache_and_the_commit_is_noted(cached):
    torch.manual_seed(1)
    bare = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2)
    save_for_hf(bare, cached("org/timm"), model_args={"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2})
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = cached("facebook/dinov2-tiny")
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.BitImageProcessor().save_pretrained(folder)
    folder = cached("org/clip")
    vision, text = TOWER | {"image_size": 32, "patch_size": 8, "head_width": 16}, TOWER | {"heads": 2}
    about = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    dual = open_clip.create_model("hf-hub:org/clip", load_weights=False)
    save_file(
        {name: value.contiguous() for name, value in dual.state_dict().items()}, folder / "open_clip_model.safetensors"
    )

    for family, name in (
        ("vision", "hf-hub:org/timm"),
        ("vision", "facebook/dinov2-tiny"),
        ("clip", "hf-hub:org/clip"),
    ):
        record = modalities.load(family, name).provenance
        assert (record["name"], record["revision"], record["pretrained"]) == (name, COMMIT, True)
    model = modalities.load("clip", "hf-hub:org/clip")
    assert all(torch.equal(value, dual.state_dict()[name]) for name, value in model.module.state_dict().items())
    assert {"visual.transformer.resblocks.0", "transformer.resblocks.0"} <= set(model.sites())
    with pytest.raises(OSError, match="no connection to the hub, and no copy in its cache"):
        modalities.load("clip", "hf-hub:org/other")
