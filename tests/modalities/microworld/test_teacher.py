"""How the transformers learn from the teacher: labels and tokens against slow references, heads that begin as a convolution."""

import numpy as np
import pytest
import torch

import modalities
from modalities.microworld import draw, render
from modalities.microworld.scenes import World
from modalities.microworld.train import clip, vit
from modalities.microworld.train.common import object_shares, pixels
from modalities.microworld.train.teacher import Lesson, Teacher, labels


def test_labels_are_those_of_the_object_seen_most_on_a_patch():
    scenes = draw(12, 3)
    drawn = render(scenes)
    share, values = labels(scenes, drawn)
    checked = 0
    for scene in range(12):
        for patch in range(64):
            row, column = divmod(patch, 8)
            seen = drawn.instances[scene, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            count = [int((seen == slot + 1).sum()) for slot in range(4)]
            assert float(share[scene, patch]) == max(count) / 64
            if max(count) and count.count(max(count)) == 1:
                checked += 1
                slot = count.index(max(count))
                for name, value in values.items():
                    assert int(value[scene, patch]) == getattr(scenes, name)[scene, slot]
    assert checked > 50


def test_a_token_holds_the_maps_of_its_own_patch():
    torch.manual_seed(0)
    teacher = Teacher().eval()
    images = pixels(render(draw(2, 4)).images)
    tokens = teacher.tokens(images)
    assert [x.shape[-1] for x in tokens] == [512, 256, 128, 128]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fine = teacher(images)[0].float()
    for row, column in ((0, 0), (2, 5), (7, 7)):
        own = fine[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
        assert torch.equal(tokens[0][:, 8 * row + column], own)


def queries_and_keys(name):
    """Name -> place codes of the 64 patches [64, d], and (query, key) weights of every layer, in an untrained tower."""
    if name == "vit":
        model = vit.build()
        layers = [(one.attention.q_proj.weight, one.attention.k_proj.weight) for one in model.encoder.layer]
        return model.embeddings.position_embeddings[0, 1:], layers
    tower = clip.build().visual
    return tower.positional_embedding[1:], [
        one.attn.in_proj_weight[:256].chunk(2) for one in tower.transformer.resblocks
    ]


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_each_head_begins_by_looking_at_one_neighbour(name):
    torch.manual_seed(0)
    place, layers = queries_and_keys(name)
    wanted = {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)} - {(0, 0)}
    for query, key in layers:
        found = set()
        for head in range(8):
            rows = slice(16 * head, 16 * head + 16)
            scores = (place[:, :16] @ query[rows, :16].T) @ (place[:, :16] @ key[rows, :16].T).T
            steps = set()
            for patch in (9, 27, 36, 54):  # away from the border
                best = int(scores[patch].argmax())
                steps.add((best % 8 - patch % 8, best // 8 - patch // 8))
            assert len(steps) == 1
            found |= steps
        assert found == wanted


def test_a_lesson_trains_the_student_and_leaves_the_teacher_alone():
    torch.manual_seed(0)
    teacher = Teacher().eval()
    lesson = Lesson(teacher, 32)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    drawn = render(draw(8, 5, world=World(counts=(0.0, 1.0))))
    images, share = pixels(drawn.images), object_shares(drawn)
    states = [torch.randn(8, 65, 32, requires_grad=True) for _ in range(5)]
    value = lesson(images, share, states[:4], states[4])
    value.backward()
    assert all(float(state.grad.abs().sum()) > 0 for state in (*states[:3], states[4]))
    assert states[3].grad is None  # `last` stands for the deepest layer
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in lesson.parameters()}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_loss_of_a_lesson_is_zero_for_one_who_knows_it_all_and_counts_bare_patches_a_tenth():
    """A student whose tokens are the teacher's own standardised maps, read by heads that copy."""
    torch.manual_seed(0)
    teacher = Teacher().eval()
    lesson = Lesson(teacher, 128)
    drawn = render(draw(4, 6))
    images, share = pixels(drawn.images), object_shares(drawn)
    targets = [(x - m) / s for x, (m, s) in zip(lesson.known(images), lesson.spread, strict=True)]
    for head in lesson.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    torch.nn.init.eye_(lesson.heads[3].weight)
    last = torch.cat([torch.zeros(4, 1, 128), targets[3]], 1)
    ignorant = lesson(images, share, [torch.zeros(4, 65, 128)] * 4, torch.zeros(4, 65, 128))
    knowing = lesson(images, share, [torch.zeros(4, 65, 128)] * 4, last)
    weight = np.where(share.sum(1).numpy() > 0.02, 1.0, 0.1)
    deepest = (weight * targets[3].square().mean(-1).numpy()).sum() / weight.sum()
    assert (ignorant - knowing).item() == pytest.approx(float(deepest), rel=1e-4)


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_a_training_is_seeded_and_its_files_hold_what_it_made(name, tmp_path):
    """A few steps, twice: the same weights; and the ordinary adapters load them by directory."""
    torch.manual_seed(0)
    teacher = Teacher().eval()
    made = [vit.train(teacher, 2, 4)[0] if name == "vit" else clip.train(teacher, 2, 2, 4)[0] for _ in range(2)]
    states = [model.state_dict() for model in made]
    fresh = (vit.build() if name == "vit" else clip.build()).state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, fresh[key]) for key, value in states[0].items())
    {"vit": vit, "clip": clip}[name].save(made[0], tmp_path)
    loaded = modalities.load({"vit": "vision", "clip": "clip"}[name], str(tmp_path)).module.state_dict()
    for key, value in states[0].items():
        torch.testing.assert_close(loaded[key].float(), value.half().float(), msg=key)
