"""A text-to-image `StableDiffusionPipeline`: a CLIP text encoder, a UNet on 32 x 32 latents, a tiny autoencoder and DDIM.

    x_t = a_t z + s_t e,    L = mean w |u(x_t, t, text) - v|^2,    v = a_t e - s_t z,    P(t) ~ 1 / (1 + a_t^2 / (2 s_t^2)),    w = 1 + 2 [object]

(v-prediction, Salimans and Ho 2022; times of little noise, which settle nothing but grain, are drawn less.) z are the autoencoder's latents of a scene
at unit variance, e ~ N(0, 1); one caption in ten is left empty, for classifier-free guidance. The text encoder starts from the tiny CLIP's and is trained
along; the pipeline holds the moving average of all weights. Scenes are rendered and encoded once, captions drawn anew at every step.

First it sees only the quarter of each scene around its object (Wang et al. 2023, "Patch diffusion"): what an object looks like is learnt where it
fills the view, at a quarter of the price. Then whole scenes teach where things are.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..attributes import DEFAULT
from ..captions import choose, say
from ..renderer import render
from ..scenes import Scenes, World, draw
from ..tables import table
from . import vae as codec
from .clip import CONFIG
from .clip import load as load_clip
from .common import HELD_OUT_SEED, TRAIN_SEED, device, fit, halve, pixels, weights_dir
from .teacher import Teacher
from .tokens import clip_tokenizer, save_clip_tokenizer

CLOSE, STEPS, BATCH, LR = 3500, 4700, 48, 2e-3
MORE_LR = 1e-3
SCENES = 30_000
WORLD = World(counts=(0.8, 0.2))
UNCONDITIONAL, DECAY = 0.1, 0.998
CONTEXT = 32
STEPS_DRAWN = 20


def text_encoder(tokenizer: Any, clip: dict[str, Tensor]) -> Any:
    """A `CLIPTextModel` with the weights of an open_clip text tower, cut to the shorter context."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CONFIG["text_cfg"]
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=text["width"], intermediate_size=4 * text["width"], num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"], max_position_embeddings=CONTEXT, hidden_act="gelu", projection_dim=CONFIG["embed_dim"],
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    own = model.state_dict()
    prefix = next(iter(own)).split("embeddings.")[0]
    new = {
        "embeddings.token_embedding.weight": clip["token_embedding.weight"],
        "embeddings.position_embedding.weight": clip["positional_embedding"][:CONTEXT],
    }
    names = {"final_layer_norm": "ln_final"}
    for layer in range(text["layers"]):
        theirs, ours = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        names |= {
            theirs + "layer_norm1": ours + "ln_1",
            theirs + "layer_norm2": ours + "ln_2",
            theirs + "self_attn.out_proj": ours + "attn.out_proj",
            theirs + "mlp.fc1": ours + "mlp.c_fc",
            theirs + "mlp.fc2": ours + "mlp.c_proj",
        }
        for side in ("weight", "bias"):
            parts = clip[ours + f"attn.in_proj_{side}"].chunk(3)
            new |= {theirs + f"self_attn.{n}_proj.{side}": part for n, part in zip("qkv", parts, strict=True)}
    new |= {f"{a}.{side}": clip[f"{b}.{side}"] for a, b in names.items() for side in ("weight", "bias")}
    model.load_state_dict(own | {prefix + name: value for name, value in new.items()})
    return model


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=codec.SIDE, in_channels=codec.CHANNELS, out_channels=codec.CHANNELS, block_out_channels=(32, 64, 96), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONFIG["text_cfg"]["width"], attention_head_dim=4, norm_num_groups=8, time_embedding_dim=192,
        resnet_time_scale_shift="scale_shift", addition_embed_type="text", addition_embed_type_num_heads=4,
    )  # fmt: skip


def scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


class Painter(nn.Module):
    def __init__(self, clip: dict[str, Tensor]) -> None:
        super().__init__()
        self.tokenizer = clip_tokenizer(CONTEXT)
        self.text_encoder, self.unet = text_encoder(self.tokenizer, clip), unet()


def prompt(facts: dict[str, Any], rng: np.random.Generator) -> str:
    """A caption that tells nearly everything, or sometimes nothing."""
    return "" if rng.random() < UNCONDITIONAL else say(choose(facts, rng, detail=0.93), rng)


def near(thing: dict[str, Any], rng: np.random.Generator) -> tuple[slice, slice, slice]:
    """The quarter of the latents around an object, as far off its centre as leaves all of it inside."""
    half = codec.SIDE // 2
    top, left = (int(np.clip(thing[axis] * codec.SIDE - half / 2 + rng.integers(-2, 3), 0, half)) for axis in "yx")
    return slice(None), slice(top, top + half), slice(left, left + half)


def scenes_encoded(vae: Any, world: World, n: int) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Facts of `n` scenes, their latents [n, channels, 32, 32] at unit variance, and the share of each place that objects cover [n, 1, 32, 32]."""
    facts, latents, covered = [], [], []
    for start in range(0, n, 500):
        scenes = draw(min(500, n - start), TRAIN_SEED + 3, start, world)
        drawn = render(scenes)
        facts += [table(scenes, row) for row in range(len(scenes))]
        with torch.no_grad():
            latents.append((vae.encoder(pixels(drawn.images)) / codec.SPREAD).half())
        shown = torch.from_numpy(drawn.instances > 0)[:, None].float()
        covered.append(F.avg_pool2d(shown, 64 // codec.SIDE).half())
    return facts, torch.cat(latents), torch.cat(covered).to(device())


def train(
    vae: Any,
    clip: dict[str, Tensor],
    world: World = WORLD,
    close: int = CLOSE,
    steps: int = STEPS,
    batch: int = BATCH,
    n: int = SCENES,
    painter: Painter | None = None,
    lr: float = LR,
) -> tuple[Painter, float]:
    """The trained text encoder and UNet, and the minutes it took. Another `world` makes a generator with other habits, blindspots among them.

    painter: go on with this one in place of a new one, as if STEPS steps had been done: whole scenes only.
    """
    first = 0 if painter is None else STEPS
    torch.manual_seed(4 + first)
    painter = (painter or Painter(clip)).to(device())
    average = copy.deepcopy(painter).eval().requires_grad_(False)
    facts, latents, covered = scenes_encoded(vae, world, n)
    alphas = scheduler().alphas_cumprod.to(device())
    alone, whole = np.flatnonzero([len(one["objects"]) == 1 for one in facts]), (slice(None),) * 3
    times = 1 / (1 + alphas / (2 * (1 - alphas)))

    def loss(step: int) -> Tensor:
        keep = min(DECAY, (1 + step) / (10 + step))
        for slow, fast in zip(average.parameters(), painter.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - keep)
        rng = np.random.default_rng([TRAIN_SEED + 3, first + step])
        if first + step < close:
            rows = rng.choice(alone, batch)
            views = [near(facts[row]["objects"][0], rng) for row in rows]
        else:
            rows = rng.integers(0, n, batch // 2)
            views = [whole] * len(rows)
        ids = painter.tokenizer(
            [prompt(facts[row], rng) for row in rows], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(device())
        z = torch.stack([latents[row][view] for row, view in zip(rows, views, strict=True)]).float()
        weight = 1 + 2 * torch.stack([covered[row][view] for row, view in zip(rows, views, strict=True)]).float()
        t = torch.multinomial(times, len(z), replacement=True)
        e = torch.randn_like(z)
        a, s = alphas[t].sqrt()[:, None, None, None], (1 - alphas[t]).sqrt()[:, None, None, None]
        # Fused attention is slow backwards on CPUs in half precision.
        with torch.autocast(device().type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            text = painter.text_encoder(ids).last_hidden_state
            v = painter.unet(a * z + s * e, t, text).sample
        return (weight * (v.float() - (a * e - s * z)).square()).mean()

    matrices = [p for name, p in painter.named_parameters() if p.ndim == 2 and "embedding" not in name]
    minutes = fit("diffusion", painter, loss, steps, lr, weight_decay=0.01, matrices=matrices)
    return average, minutes


def painter_of(pipe: Any) -> Painter:
    """What a pipeline paints with, to train it further."""
    painter = Painter(load_clip().state_dict())
    painter.text_encoder.load_state_dict(pipe.text_encoder.float().state_dict())
    painter.unet.load_state_dict(pipe.unet.float().state_dict())
    return painter


def pipeline(painter: Painter, vae: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae, text_encoder=painter.text_encoder, tokenizer=painter.tokenizer, unet=painter.unet, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def generate(
    pipe: Any, captions: list[str], seed: int = 0, steps: int = STEPS_DRAWN, guidance: float = 3.0
) -> np.ndarray:
    """Images [captions, 64, 64, 3] in uint8, from the pipeline's own call."""
    pipe.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(captions), 50):
        generator = torch.Generator().manual_seed(seed + start)
        call = pipe(
            captions[start : start + 50],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="np",
        )
        images.append((call.images * 255).round().clip(0, 255).astype(np.uint8))
    return np.concatenate(images)


def report(pipe: Any, judge: Teacher, n: int = 400, guidance: float = 3.0) -> dict[str, Any]:
    """Share of generated one-object images in which the judge finds what was asked.

    `ceiling` is its accuracy on real held-out scenes, `codec` on the same passed through the autoencoder, `floor` its agreement with the captions of
    other images. `shape_and_colour` asks for both in one image.
    """
    scenes = draw(n, HELD_OUT_SEED + 1, world=World(counts=(1.0,)))
    captions = [say(choose(table(scenes, row), np.random.default_rng([7, row]), 1.0)) for row in range(n)]
    real = pixels(render(scenes).images)
    seen = {
        "generated": verdict(judge, pixels(generate(pipe, captions, guidance=guidance))),
        "codec": verdict(judge, codec.reconstruction(pipe.vae, real)),
        "ceiling": verdict(judge, real),
    }
    asked = {name: truth(scenes, name) for name in DEFAULT}
    right = {which: {name: verdict[name] == asked[name] for name in DEFAULT} for which, verdict in seen.items()}
    right["floor"] = {name: seen["generated"][name] == np.roll(asked[name], 1) for name in DEFAULT}
    for hits in right.values():
        hits["shape_and_colour"] = hits["shape"] & hits["colour"]
    return {"n": n, "guidance": guidance, "steps": STEPS_DRAWN} | {
        name: {which: round(float(hits[name].mean()), 4) for which, hits in right.items()}
        for name in (*DEFAULT, "shape_and_colour")
    }


@torch.no_grad()
def verdict(judge: Teacher, images: Tensor) -> dict[str, np.ndarray]:
    """The number of the value the judge sees in one-object images, for every attribute: its patches vote, each as far as it sees an object."""
    seen = {name: [] for name in DEFAULT}  # type: dict[str, list[Tensor]]
    for part in images.split(250):
        map = judge(part)[-1]
        weight = judge.covered(map).sigmoid()
        for name, head in judge.heads.items():
            seen[name].append((head(map).log_softmax(1) * weight).sum((2, 3)).argmax(1))
        seen["background"].append(judge.background(map.mean((2, 3))).argmax(1))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in seen.items()}


def truth(scenes: Scenes, attribute: str) -> np.ndarray:
    return scenes.background if attribute == "background" else getattr(scenes, attribute)[:, 0]


def save(pipe: Any, directory: Path) -> None:
    pipe.save_pretrained(directory)
    save_clip_tokenizer(pipe.tokenizer, directory / "tokenizer")
    halve(directory)


def load() -> Any:
    from diffusers import StableDiffusionPipeline

    pipe: Any = StableDiffusionPipeline.from_pretrained(weights_dir("diffusion"))
    return pipe.to(device())
