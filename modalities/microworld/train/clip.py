"""A CLIP in open_clip's format, trained on scenes and their captions, and on objects and their names.

    first  L = L_lesson(teacher)                                    the vision tower alone
    then   L = NCE(image, caption) + NCE(object, phrase) + L_lesson(teacher) / 4
    NCE(a, b) = cross entropy, both ways, of s a b^T with the pairs that belong together;    s: learnt scale

(Radford et al. 2021; the second term is RegionCLIP's, Zhong et al. 2022, with the renderer's masks: an object is its mean patch token through the
same projection.) Captions are drawn anew for every image: orders, synonyms, and facts left out. In every second batch all scenes share their
ground and two colours, so that shape, texture and size have to be read as well.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from ..attributes import DEFAULT, OBJECT_ATTRIBUTES, VALUES
from ..captions import Mention, choose, everything, say
from ..renderer import render
from ..scenes import Scenes, World, draw
from ..tables import table
from .common import HELD_OUT_SEED, MEAN, STD, TRAIN_SEED, device, fit, object_shares, pixels, weights_dir
from .teacher import CROWDED, Lesson, Teacher, look_around
from .tokens import clip_tokenizer, save_clip_tokenizer

LESSONS, STEPS, BATCH, LR = 500, 500, 64, 3e-3
CONTEXT = 48
CONFIG: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 4, "width": 128, "head_width": 16},
    "text_cfg": {
        "context_length": CONTEXT,
        "width": 96,
        "heads": 3,
        "layers": 2,
        "hf_tokenizer_name": ".",
    },
}


def config() -> dict:
    """`CONFIG` with the vocabulary's size filled in."""
    return CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"vocab_size": len(clip_tokenizer(CONTEXT))}}


def captions(scenes: Scenes, rng: np.random.Generator, detail: float = 0.85) -> list[str]:
    return [say(choose(table(scenes, row), rng, detail), rng) for row in range(len(scenes))]


def batch_world(step: int) -> World:
    """Everything, or in odd steps one ground and two colours."""
    counts = (0.35, 0.4, 0.15, 0.1)
    if step % 2 == 0:
        return World(counts=counts)
    rng = np.random.default_rng([TRAIN_SEED, step])
    colours = tuple(str(c) for c in rng.choice(DEFAULT["colour"], 2, replace=False))
    return World(counts=counts, colours=colours, backgrounds=(str(rng.choice(DEFAULT["background"])),))


def build() -> Any:
    import open_clip

    clip = open_clip.CLIP(**config()).to(device())
    tower, width = clip.visual, CONFIG["vision_cfg"]["width"]
    attention = [block.attn.in_proj_weight[: 2 * width].chunk(2) for block in tower.transformer.resblocks]
    look_around(
        tower.positional_embedding[1:], tower.conv1.weight, attention, width // CONFIG["vision_cfg"]["head_width"]
    )
    return clip


def layers(tower: Any, images: Tensor) -> list[Tensor]:
    """Tokens after each layer of open_clip's vision tower."""
    states = [tower._embeds(images)]
    for block in tower.transformer.resblocks:
        states.append(block(states[-1]))
    return states[1:]


def train(teacher: Teacher, lessons: int = LESSONS, steps: int = STEPS, batch: int = BATCH) -> tuple[Any, float]:
    torch.manual_seed(2)
    clip = build()
    tower, lesson = clip.visual, Lesson(teacher, CONFIG["vision_cfg"]["width"])
    tokenizer = clip_tokenizer(CONTEXT)
    seeing = [p for p in tower.transformer.parameters() if p.ndim == 2]
    reading = [p for p in clip.transformer.parameters() if p.ndim == 2]

    def study(step: int) -> Tensor:
        drawn = render(draw(batch // 2, TRAIN_SEED + 1, step * batch // 2, CROWDED))
        images = pixels(drawn.images)
        states = layers(tower, images)
        return lesson(images, object_shares(drawn).to(images), states, tower.ln_post(states[-1]))

    minutes = fit("clip, lessons", nn.ModuleList([tower, lesson]), study, lessons, LR, matrices=seeing)

    def encode(texts: list[str]) -> Tensor:
        ids = tokenizer(texts, padding="longest", return_tensors="pt").input_ids.to(device())
        return F.normalize(text_features(clip, ids), dim=-1)

    def loss(step: int) -> Tensor:
        scenes = draw(batch, TRAIN_SEED + 2, step * batch, batch_world(step))
        drawn, rng = render(scenes), np.random.default_rng([TRAIN_SEED + 1, step])
        images = pixels(drawn.images)
        states = layers(tower, images)
        last, share = tower.ln_post(states[-1]), object_shares(drawn).to(images)
        seen = (share.sum(-1) > 0.2).cpu().numpy() & scenes.present
        mean = share @ last[:, 1:] / share.sum(-1, keepdim=True).clamp(min=1e-6)
        objects = F.normalize(mean[torch.from_numpy(seen)] @ tower.proj, dim=-1)
        pooled = F.normalize(last[:, 0] @ tower.proj, dim=-1)
        facts = np.stack([getattr(scenes, name)[seen] for name in OBJECT_ATTRIBUTES], 1)
        phrases = [
            say(Mention(({n: VALUES[n][v] for n, v in zip(OBJECT_ATTRIBUTES, row, strict=True)},)), rng)
            for row in facts
        ]
        same = torch.from_numpy((facts[:, None] == facts).all(-1)).to(device())
        clip.logit_scale.data.clamp_(max=4.6)
        scale = clip.logit_scale.exp()
        whole = nce(pooled, encode(captions(scenes, rng)), scale, torch.eye(batch, device=device()) > 0)
        return whole + nce(objects, encode(phrases), scale, same) + lesson(images, share, states, last) / 4

    together = nn.ModuleList([clip, lesson])
    return clip, minutes + fit("clip", together, loss, steps, LR / 2, warmup=50, matrices=seeing + reading)


def nce(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], scale: Tensor, positive: Bool[Tensor, "n n"]) -> Tensor:
    """Cross entropy both ways; where several pairs belong together the target is spread evenly over them."""
    target = positive.float() / positive.sum(1, keepdim=True)
    logits = scale * a @ b.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def text_features(clip: Any, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch d"]:
    """What `clip.encode_text` gives for the same texts padded to full length: attention is causal, so the padding only costs time."""
    length = ids.shape[1]
    x = clip.token_embedding(ids) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), ids.argmax(-1)] @ clip.text_projection


@torch.no_grad()
def retrieval(clip: Any, n: int = 256) -> dict[str, float]:
    """R@1 both ways among `n` held-out scenes whose full captions all differ; the floor is one in `n`."""
    scenes = draw(4 * n, HELD_OUT_SEED)
    texts = [say(everything(table(scenes, row))) for row in range(len(scenes))]
    rows = np.array([row for row, text in enumerate(texts) if texts.index(text) == row][:n])
    ids = clip_tokenizer(CONTEXT)([texts[row] for row in rows], padding="longest", return_tensors="pt").input_ids
    image = F.normalize(clip.encode_image(pixels(render(scenes[rows]).images)), dim=-1)
    text = F.normalize(text_features(clip, ids.to(device())), dim=-1)
    similarity, target = image @ text.T, torch.arange(n, device=image.device)
    return {
        "image_to_text_r1": round(float((similarity.argmax(1) == target).float().mean()), 4),
        "text_to_image_r1": round(float((similarity.argmax(0) == target).float().mean()), 4),
        "floor": round(1 / n, 4),
        "n": n,
    }


def save(clip: Any, directory: Path) -> None:
    """open_clip's local-dir format, in half precision."""
    directory.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "size": [64, 64],
        "mode": "RGB",
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    (directory / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config(), "preprocess_cfg": preprocess}, indent=1) + "\n"
    )
    weights = {name: value.detach().half().contiguous().cpu() for name, value in clip.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors", metadata={"format": "pt"})
    save_clip_tokenizer(clip_tokenizer(CONTEXT), directory)


def load() -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{weights_dir('clip')}", precision="fp32").to(device()).eval()
