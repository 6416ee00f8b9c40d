"""A Stable Diffusion pipeline with CLIP's own tokenizer and RANDOM weights, in diffusers' native format, where no real one is at hand.

    python benchmarks/random_pipeline.py OUT [WIDTH LAYERS]        the text encoder's; SD 1.5 has 768 and 12

The vocabulary and merges are those that open_clip carries. The denoiser and the autoencoder are as small as they go: reading text never runs them.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def tokenizer() -> CLIPTokenizer:
    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({names.get(word, word): number for word, number in own.encoder.items()}))
        merges.write_text("#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in own.bpe_ranks))
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def save(out: str, width: int = 768, layers: int = 12) -> None:
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": max(width // 64, 1)}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = CLIPTextConfig(vocab_size=len(words), num_hidden_layers=layers, **sizes, **ends)
    blocks = {"block_out_channels": (8,), "norm_num_groups": 4, "sample_size": 8}
    StableDiffusionPipeline(
        text_encoder=CLIPTextModel(config),
        tokenizer=words,
        unet=UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=width,
            **blocks,
        ),
        vae=AutoencoderKL(latent_channels=4, **blocks),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)


if __name__ == "__main__":
    save(sys.argv[1], *map(int, sys.argv[2:4]))
