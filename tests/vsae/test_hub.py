"""SAEs by name and published runs; the hub itself is a stand-in that keeps files in a folder."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects

import vsae
from vsae import hub, interop
from vsae.interop.convert import convert
from vsae.sparsifiers import TopK

D, N, K = 12, 48, 5


@pytest.fixture
def sae():
    draw = torch.Generator().manual_seed(4)
    shapes = ((D, N), (N,), (N, D), (D,))
    return vsae.SAE.from_weights(*(torch.randn(shape, generator=draw) for shape in shapes), TopK(K))


@pytest.fixture
def run(tmp_path):
    rows = torch.randn(300, D) @ torch.randn(D, D)
    fingerprint = {"model": {"name": "timm/vit_test", "weights": "ab"}, "site": "blocks.3", "side": "output"}
    fingerprint["data"] = {"name": "photos"}
    config = vsae.TrainConfig(tokens=2_000, batch_size=64, tracker="none")
    source = vsae.TensorSource(rows, fingerprint)
    recipe = vsae.recipes.TopK(n_latents=N, k=K)
    return vsae.train(source, recipe, tmp_path / "run", config, val=source, progress=False)


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """What huggingface_hub would do, with folders instead of a network."""
    root = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def create_commit(self, repo_id, operations, commit_message):
            for each in operations:
                target = root / repo_id / each.path_in_repo
                target.parent.mkdir(parents=True, exist_ok=True)
                content = each.path_or_fileobj
                target.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())

        def list_repo_files(self, repo_id, revision=None):
            return [
                path.relative_to(root / repo_id).as_posix() for path in (root / repo_id).rglob("*") if path.is_file()
            ]

    def snapshot_download(repo_id, revision=None, allow_patterns=None):
        local = tmp_path / "cache" / repo_id
        for name in filter_repo_objects(Api().list_repo_files(repo_id), allow_patterns=allow_patterns):
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / repo_id / name, local / name)
        return str(local)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return root


def test_local_directories_of_any_format(tmp_path, sae):
    x = torch.randn(32, D)
    expected = sae(x).x_hat
    interop.write(sae, tmp_path / "many/layers.3", "sparsify")
    interop.write(sae, tmp_path / "many/layers.4", "dictionary_learning")
    convert(tmp_path / "many/layers.3", tmp_path / "run")
    for found in (
        vsae.SAE.from_pretrained(tmp_path / "many", "layers.3"),
        vsae.SAE.from_pretrained(tmp_path / "many", subfolder="layers.4"),
        vsae.SAE.from_pretrained(tmp_path / "run"),
    ):
        torch.testing.assert_close(found(x).x_hat, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("subfolder", [None, "vit/blocks.3"])
def test_what_was_pushed_comes_back(repositories, run, subfolder):
    address = run.push_to_hub("me/sae", subfolder)
    folder = repositories / "me/sae" / (subfolder or "")
    assert address == "https://huggingface.co/me/sae" + (f"/tree/main/{subfolder}" if subfolder else "")
    names = {"README.md", "cfg.json", "run.json", "sae_weights.safetensors", "self_check.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    x = torch.randn(32, D)
    assert torch.equal(vsae.SAE.from_pretrained("me/sae", subfolder)(x).x_hat, run.sae(x).x_hat)


def test_only_what_is_asked_for_is_downloaded(repositories, run, tmp_path):
    run.push_to_hub("me/sae")
    run.push_to_hub("me/sae", "other")
    vsae.SAE.from_pretrained("me/sae")
    assert (tmp_path / "cache/me/sae/run.json").is_file() and not (tmp_path / "cache/me/sae/other").exists()


def test_the_card_says_what_the_run_is(run):
    text = hub.card(run, "me/sae", "vit")
    head, _, body = text.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(head) == {
        "library_name": "vsae",
        "tags": ["sparse-autoencoder", "interpretability"],
        "base_model": "timm/vit_test",
    }
    assert "# license: choose one" in head
    assert body.lstrip().startswith("# topk SAE of vit_test, blocks.3 output: 48 latents")
    val = run.meta["metrics"]["val"]
    assert f"| NMSE | {val['nmse']:.3f} | floor 1: the mean |" in body
    assert f"| L0 | {val['l0']:.1f} |" in body
    assert 'SAE.from_pretrained("me/sae", subfolder="vit")' in body
    assert "data: photos" in body and "k 5" in body and "Parts: Linear, TopK, Free." in body


def test_the_card_of_an_imported_sae_claims_nothing(sae, tmp_path):
    interop.write(sae, tmp_path / "a", "sparsify")
    convert(tmp_path / "a", tmp_path / "run")
    text = hub.card(vsae.Run.load(tmp_path / "run"), "me/sae")
    assert "read from files of sparsify" in text and "| held out | nothing |" in text
    assert "base_model" not in text and "NMSE" not in text


def test_a_name_that_is_nowhere_is_said():
    with pytest.raises(FileNotFoundError, match="nobody/nothing is neither a local path nor a repository"):
        vsae.SAE.from_pretrained("nobody/nothing", "x")
