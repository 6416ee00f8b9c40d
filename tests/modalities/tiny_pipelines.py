"""Pipelines of diffusers' own classes, so small that a call takes a moment, with random weights and tokenizers of ten words."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

MICROWORLD = Path(__file__).resolve().parents[2] / "modalities/microworld/weights/diffusion"

WORDS = ["a", "red", "blue", "cat", "dog", "on", "photo", "blurry"]


def clip_tokenizer(filler="<|endoftext|>", length=8):
    """Each of `WORDS` is one token; SD 1 fills with the end mark, SD 2 and SDXL's second with "!"."""
    letters = sorted(set("".join(WORDS)))
    tokens, merges = ["!", *letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        whole, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for part in rest:
            merges.append((whole, part))
            whole += part
            tokens.append(whole)
    names = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={name: number for number, name in enumerate(names)},
        merges=list(dict.fromkeys(merges)),
        pad_token=filler,
        model_max_length=length,
    )


def t5_tokenizer():
    words = [(f"▁{word}", -2.0) for word in WORDS]
    return T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, ("▁", -3.0)], extra_ids=0, model_max_length=16
    )


def clip_text(kind=CLIPTextModel, layers=3):
    tokenizer = clip_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "projection_dim": 16}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), num_hidden_layers=layers, max_position_embeddings=8, **sizes, **ends
    )
    return kind(config)


def t5_text(width):
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(t5_tokenizer()), **sizes))


def unet(**more):
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **({"cross_attention_dim": 16} | more),
    )


def vae(**more):
    return AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8, **more)


def sd():
    return StableDiffusionPipeline(
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        vae=vae(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl():
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return StableDiffusionXLPipeline(
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer("!"),
        unet=unet(cross_attention_dim=32, projection_class_embeddings_input_dim=64, **added),
        vae=vae(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


def pixart():
    return PixArtAlphaPipeline(
        text_encoder=t5_text(16),
        tokenizer=t5_tokenizer(),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            caption_channels=16,
            cross_attention_dim=16,
        ),
        vae=vae(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    )


def sd3():
    return StableDiffusion3Pipeline(
        text_encoder=clip_text(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(CLIPTextModelWithProjection),
        tokenizer_2=clip_tokenizer("!"),
        text_encoder_3=t5_text(32),
        tokenizer_3=t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=8,
        ),
        vae=vae(shift_factor=0.0),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def flux():
    return FluxPipeline(
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(32),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 2, 2),
        ),
        vae=vae(shift_factor=0.0),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


BUILD = {"sd": sd, "sdxl": sdxl, "pixart": pixart, "sd3": sd3, "flux": flux}

CALLS = {
    "sd": {"guidance_scale": 5.0},
    "sdxl": {"guidance_scale": 5.0},
    "pixart": {"guidance_scale": 5.0, "use_resolution_binning": False},
    "sd3": {"guidance_scale": 5.0, "max_sequence_length": 16},
    "flux": {"true_cfg_scale": 3.0, "height": 8, "width": 8, "max_sequence_length": 12},
}
"""Options of a short call with guidance, on 8 x 8 pixels; also of the microworld's trained pipeline, where it has been made."""


if MICROWORLD.is_dir():
    CALLS["microworld"] = {"guidance_scale": 3.0}


def save(name, directory):
    if name == "microworld":
        return str(MICROWORLD)
    torch.manual_seed(0)
    pipe = BUILD[name]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            # What a new transformer leaves at zero would hide every edit.
            with torch.no_grad():
                for parameter in part.parameters():
                    if not parameter.any():
                        parameter.normal_(std=0.1)
    pipe.save_pretrained(directory)
    return str(directory)
