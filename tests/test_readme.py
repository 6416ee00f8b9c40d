"""The README's Python is run as it stands, on a small random model in place of DINOv2's weights."""

import re
import shlex
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import modalities
import vsae
from vsae import cli, recipes

README = Path(__file__).resolve().parents[1] / "README.md"
SMALL = {
    'modalities.load("dinov2", "vit_small_patch14_reg4_dinov2.lvd142m")': 'modalities.load("vision", "vit_tiny_patch16_224", pretrained=False, img_size=64)',
    "n_latents=4096, k=32": "n_latents=64, k=4",
    "TrainConfig(epochs=10)": "TrainConfig(epochs=2, batch_size=128)",
}


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    model = shlex.split(
        "--model.family vision --model.name vit_tiny_patch16_224 --model.no-pretrained --model.img-size 64"
    )
    cli.main(["extract", "--data", "photos", *model, "--sites", "blocks.11", "--out", "stores/dinov2"])

    code, method = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    for large, small in SMALL.items():
        assert large in code
        code, method = code.replace(large, small), method.replace(large, small)
    names = {"batch": {"image": torch.randn(2, 3, 64, 64)}, "modalities": modalities}
    exec(compile(code, "README.md", "exec"), names)

    assert names["x_hat"].shape == (2 * 17, 192) and names["code"].values.shape == (34, 4)
    assert names["run"].meta["metrics"]["val"]["nmse"] < 1
    assert names["run"].fingerprint["select"]["kinds"] == ["patch"]

    monkeypatch.setattr(recipes, "RECIPES", dict(recipes.RECIPES))
    exec(compile(method, "README.md", "exec"), names)
    loaded = vsae.Run.load("runs/mine")
    x = torch.randn(500, 192)
    assert torch.equal(loaded.sae(x).x_hat, names["mine"].sae(x).x_hat)
    values = loaded.sae.encode(x).values
    assert (values >= 0.3 * values.amax(1, keepdim=True)).logical_or(values == 0).all()
    assert 1 <= loaded.meta["metrics"]["val"]["l0"] < 4 and recipes.RECIPES["loudest"] is names["LoudestRecipe"]
    assert len(method.splitlines()) <= 35
