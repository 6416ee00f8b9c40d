"""A LLaVA: the tiny CLIP's vision tower, frozen, a projector and a tiny Llama (`LlavaForConditionalGeneration`), trained to describe scenes and
to answer yes/no questions about them.

    USER: <image> describe the picture. ASSISTANT: a small red star on sand</s>
    USER: <image> is there a red star? ASSISTANT: yes</s>

Only answers carry loss. Descriptions name every object from left to right with all its attributes. The tower being frozen, it looks once at each of
a fixed set of scenes, and a step costs only projector and Llama; what is asked of a scene is drawn anew each time.

Whether a word and an image agree is a parity: neither tells anything without the other, and with all kinds of questions at once nothing is learnt in
a thousand steps. So they join one by one, every `EACH` steps, the ground first; each takes a hundred steps once the one before is known.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ..captions import everything, parse, say
from ..questions import KINDS, ask
from ..renderer import render
from ..scenes import Scenes, World, draw
from ..tables import table
from .clip import CONFIG
from .common import HELD_OUT_SEED, MEAN, STD, TRAIN_SEED, device, fit, halve, pixels, weights_dir
from .tokens import chat_tokenizer

STEPS, BATCH, LR = 1600, 32, 2e-3
SCENES = 20_000
LAYER = -1
DESCRIBE = "describe the picture."
QUESTIONS = 6
ORDER = ("background", "colour", "texture", "shape", "pair", "relation")
EACH = 150
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build(clip: dict[str, Tensor]) -> tuple[Any, Any]:
    """The untrained model around a tiny CLIP's weights, and its processor."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = chat_tokenizer()
    vision = CONFIG["vision_cfg"]
    width, layers = vision["width"], vision["layers"]
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // vision["head_width"],
                image_size=64, patch_size=8, hidden_act="gelu", projection_dim=CONFIG["embed_dim"],
            ),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4,
                max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=LAYER, image_seq_length=64, vision_feature_select_strategy="default", tie_word_embeddings=True,
        )
    )  # fmt: skip
    tower = {k: v for k, v in model.state_dict().items() if "vision_tower" in k}
    missing = model.load_state_dict(tower_weights(clip, tower, layers), strict=False).unexpected_keys
    assert not missing, missing
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD),
        tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>", chat_template=TEMPLATE,
    )  # fmt: skip
    return model, processor


def tower_weights(clip: dict[str, Tensor], tower: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """open_clip's vision tower under transformers' names."""
    prefix = next(iter(tower)).split("embeddings.")[0]
    visual = {name.removeprefix("visual."): value for name, value in clip.items() if name.startswith("visual.")}
    new = {
        "embeddings.class_embedding": visual["class_embedding"],
        "embeddings.patch_embedding.weight": visual["conv1.weight"],
        "embeddings.position_embedding.weight": visual["positional_embedding"],
    }
    names = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    for layer in range(layers):
        theirs, ours = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        names |= {
            theirs + "layer_norm1": ours + "ln_1",
            theirs + "layer_norm2": ours + "ln_2",
            theirs + "self_attn.out_proj": ours + "attn.out_proj",
            theirs + "mlp.fc1": ours + "mlp.c_fc",
            theirs + "mlp.fc2": ours + "mlp.c_proj",
        }
        for side in ("weight", "bias"):
            parts = visual[ours + f"attn.in_proj_{side}"].chunk(3)
            new |= {theirs + f"self_attn.{n}_proj.{side}": part for n, part in zip("qkv", parts, strict=True)}
    new |= {f"{a}.{side}": visual[f"{b}.{side}"] for a, b in names.items() for side in ("weight", "bias")}
    return {prefix + name: value for name, value in new.items()}


def description(facts: dict[str, Any]) -> str:
    """Everything about a scene in one fixed order, left to right."""
    ordered = facts | {"objects": sorted(facts["objects"], key=lambda o: o["x"])}
    return say(everything(ordered))


def turns(facts: dict[str, Any], rng: np.random.Generator, step: int) -> list[tuple[str, str]]:
    """A description; or, after the first steps, rather some questions, half of them of the kind that joined last."""
    if step < EACH or rng.random() < 0.3:
        return [(DESCRIBE, description(facts))]
    joined = ORDER[: step // EACH]
    kinds = [joined[-1] if rng.random() < 0.5 else str(rng.choice(joined)) for _ in range(QUESTIONS)]
    asked = (ask(facts, rng, kind) for kind in kinds)
    return [(question.text, "yes" if question.answer else "no") for question in asked]


def encoded(conversations: list[list[tuple[str, str]]], tokenizer: Any) -> dict[str, Tensor]:
    """Token ids, mask, and labels that are -100 everywhere but in the answers and the end marks after them."""
    pieces = []
    for conversation in conversations:
        for number, (question, answer) in enumerate(conversation):
            image = "<image>" * 64 + " " if number == 0 else ""
            pieces += [f"USER: {image}{question} ASSISTANT:", f" {answer}</s>"]
    tokens = iter(tokenizer(pieces, add_special_tokens=False).input_ids)
    rows, labels = [], []
    for conversation in conversations:
        ids: list[int] = []
        target: list[int] = []
        for _ in conversation:
            asked, answered = next(tokens), next(tokens)
            ids += asked + answered
            target += [-100] * len(asked) + answered
        rows.append(ids)
        labels.append(target)
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
    }


@torch.no_grad()
def seen(model: Any, scenes: Scenes) -> Float[Tensor, "scenes patches d"]:
    """What the tower hands to the projector, in half precision."""
    parts = []
    for start in range(0, len(scenes), 250):
        images = pixels(render(scenes[start : start + 250]).images)
        states = model.model.vision_tower(images, output_hidden_states=True).hidden_states
        parts.append(states[LAYER][:, 1:].half())
    return torch.cat(parts)


def train(clip: dict[str, Tensor], steps: int = STEPS, batch: int = BATCH, n: int = SCENES) -> tuple[Any, Any, float]:
    torch.manual_seed(3)
    model, processor = build(clip)
    model = model.to(device()).eval()
    tower, projector, llama = model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model
    tower.requires_grad_(False)
    scenes = draw(n, TRAIN_SEED + 5)
    facts, features = [table(scenes, row) for row in range(n)], seen(model, scenes)

    verdicts = torch.tensor(processor.tokenizer([" yes", " no"], add_special_tokens=False).input_ids, device=device())

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([TRAIN_SEED + 5, step])
        rows = rng.integers(0, n, batch)
        conversations = [turns(facts[row], rng, step) for row in rows]
        text = {name: value.to(device()) for name, value in encoded(conversations, processor.tokenizer).items()}
        words = model.get_input_embeddings()(text["input_ids"])
        image = text["input_ids"] == model.config.image_token_index
        words = words.masked_scatter(image[..., None], projector(features[rows].float()))
        states = llama(inputs_embeds=words, attention_mask=text["attention_mask"]).last_hidden_state[:, :-1]
        following = text["labels"][:, 1:]
        told = following != -100
        weight = 1 + 3 * torch.isin(following[told], verdicts)
        return (
            F.cross_entropy(model.lm_head(states[told]), following[told], reduction="none") * weight
        ).sum() / weight.sum()

    matrices = [p for p in (*projector.parameters(), *llama.layers.parameters()) if p.ndim == 2]
    return model, processor, fit("llava", model, loss, steps, LR, warmup=50, matrices=matrices)


@torch.no_grad()
def answers(
    model: Any, processor: Any, images: UInt8[np.ndarray, "n rows columns 3"], questions: list[str]
) -> list[str]:
    """The model's words to one question each."""
    words = []
    for start in range(0, len(images), 64):
        prompts = [f"USER: {'<image>' * 64} {q} ASSISTANT:" for q in questions[start : start + 64]]
        text = processor.tokenizer(
            prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        inputs = {"input_ids": text.input_ids.to(device()), "attention_mask": text.attention_mask.to(device())}
        out = model.generate(
            pixel_values=pixels(images[start : start + 64]), **inputs, max_new_tokens=48, do_sample=False
        )
        words += processor.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [word.strip() for word in words]


def report(model: Any, processor: Any, n: int = 400) -> dict[str, Any]:
    """On held-out scenes: yes/no accuracy by kind, and for descriptions the share of attribute slots filled rightly, object by object from left
    to right, in scenes of one and two objects; its floor gives each scene the description of another."""
    scenes = draw(n, HELD_OUT_SEED)
    images, facts = render(scenes).images, [table(scenes, row) for row in range(n)]
    rng = np.random.default_rng(HELD_OUT_SEED)
    asked = [ask(facts[row], rng, KINDS[row % len(KINDS)]) for row in range(n)]
    replies = answers(model, processor, images, [question.text for question in asked])
    right = np.array([reply == ("yes" if q.answer else "no") for reply, q in zip(replies, asked, strict=True)])
    yes = float(np.mean([q.answer for q in asked]))
    kinds = {kind: round(float(right[[q.kind == kind for q in asked]].mean()), 4) for kind in KINDS}
    few = draw(n // 2, HELD_OUT_SEED + 100, world=World(counts=(0.5, 0.5)))
    truth = [parse(description(table(few, row))) for row in range(len(few))]
    said = [parse(text) for text in answers(model, processor, render(few).images, [DESCRIBE] * len(few))]
    return {
        "yes_no": {
            "accuracy": round(float(right.mean()), 4),
            "floor": round(max(yes, 1 - yes), 4),
            "n": n,
            "by_kind": kinds,
        },
        "description": {
            name: {"accuracy": slots(truth, said, name), "floor": slots(truth, said[1:] + said[:1], name)}
            for name in ("shape", "colour", "texture", "size", "background")
        }
        | {"n": len(few)},
    }


def slots(truth: list[Any], said: list[Any], name: str) -> float:
    hits = []
    for a, b in zip(truth, said, strict=True):
        if name == "background":
            hits.append(a.background == b.background)
        else:
            hits += [i < len(b.objects) and b.objects[i].get(name) == o[name] for i, o in enumerate(a.objects)]
    return round(float(np.mean(hits)), 4)


def save(model: Any, processor: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    halve(directory)


def load() -> tuple[Any, Any]:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model: Any = LlavaForConditionalGeneration.from_pretrained(weights_dir("llava"), dtype=torch.float32)
    return model.to(device()).eval(), LlavaProcessor.from_pretrained(weights_dir("llava"))
