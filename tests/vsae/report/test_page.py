"""The files of the page: what is in them, what never is, and that they come whole."""

import json
import struct

import numpy as np
import pytest
import torch
from known_codes import HOSTILE, identity_sae, images_site
from PIL import Image

from vsae.report import Fact, explore
from vsae.report.data import packed, rounded, script_json
from vsae.report.latents import Plan


def picture(row):
    return Image.new("RGB", (64, 64), (int(row["key"][1:]) * 40 % 256, 120, 200))


@pytest.fixture
def site():
    torch.manual_seed(0)
    codes = (torch.randn(6, 5, 5) - 0.3).relu()
    codes[:, :, 4] = 0
    return images_site(codes, (2, 2))


def data(path):
    text = path.read_text("utf-8")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_page_holds_what_was_gathered(site, tmp_path):
    index = explore(
        identity_sae(5), site, picture, tmp_path / "page", title="T", facts=[Fact("NMSE", "0.4", "1 = mean")]
    )
    codes = site.batch.values.reshape(6, 5, 5).numpy()
    table, chunk = data(index.parent / "data/index.js"), data(index.parent / "data/latents-00000.js")
    assert table["id"] == [0, 1, 2, 3, 4] and table["grid"] == [2, 2] and table["images"][4] == 0
    for latent in range(4):
        assert table["density"][latent] == rounded(float((codes[:, :, latent] > 0).mean()))
        shown = chunk["latents"][str(latent)]
        best, value, _ = shown["top"][0]
        assert best == codes[:, :, latent].max(1).argmax() and value == rounded(float(codes[:, :, latent].max()))
    assert chunk["samples"]["0"] == ["images/000/000000.jpg", "k0", "", "a photo"]
    assert Image.open(index.parent / "images/000/000003.jpg").size == (64, 64)
    page = index.read_text()
    assert "NMSE" in page and "1 = mean" in page and "silent on this page" in page


def test_twice_the_same_is_the_same_bytes_and_batches_do_not_matter(site, tmp_path):
    first = explore(identity_sae(5), site, picture, tmp_path / "a").parent
    second = explore(identity_sae(5), site, picture, tmp_path / "b", batch_size=3).parent
    assert tree(first) == tree(second)
    other = explore(identity_sae(5), site, picture, tmp_path / "c", plan=Plan(top=2, random=1, seed=1)).parent
    assert tree(first) != tree(other)


def test_nothing_points_to_a_network_or_fetches(site, tmp_path):
    for name, content in tree(explore(identity_sae(5), site, picture, tmp_path / "page").parent).items():
        if not name.endswith(".jpg"):
            for word in (b"http:", b"https:", b"//", b"fetch(", b"XMLHttp", b"innerHTML", b"eval(", b"document.write"):
                assert word not in content.replace(b"\n// ", b"").replace(b"refuse fetch() ", b""), (name, word)


def test_hostile_strings_stay_inside_their_json():
    text = script_json({"a": HOSTILE, "b": "\ud800"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["a"] == HOSTILE
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_packed_codes_unpack_to_a_127th_and_never_vanish():
    cells, values = np.array([0, 300, 5, 70_000], np.int32), np.array([2.0, -1, 1e-6, 2], np.float32)
    records, start = packed(cells, values, np.full(4, 2.0), np.array([0, 2, 4]))
    assert list(struct.iter_unpack("<Hb", records.tobytes())) == [(0, 127), (300, -64), (5, 1)]
    assert start.tolist() == [0, 2, 3]


def test_pictures_that_cannot_be_read_are_grey_and_counted(site, tmp_path):
    def broken(row):
        if row["key"] == "k1":
            raise OSError("gone")
        return None if row["key"] == "k2" else picture(row)

    index = explore(identity_sae(5), site, broken, tmp_path / "page")
    samples = data(index.parent / "data/latents-00000.js")["samples"]
    assert [samples[str(i)][0] == 0 for i in range(4)] == [False, True, True, False]
    assert "2 pictures could not be read" in index.read_text()


def test_only_the_densest_latents_when_asked(site, tmp_path):
    index = explore(identity_sae(5), site, picture, tmp_path / "page", latents=2, plan=Plan(top=1, random=0))
    tokens = (site.batch.values > 0).sum(0)
    assert data(index.parent / "data/index.js")["id"] == sorted(tokens.argsort(descending=True)[:2].tolist())
    assert "3 latents that fire on fewer tokens are left out" in index.read_text()


def test_an_old_page_is_replaced_whole_and_anything_else_is_left_alone(site, tmp_path):
    page = tmp_path / "page"
    explore(identity_sae(5), site, picture, page, title="old")
    before = tree(page)

    def stops(row):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        explore(identity_sae(5), site, stops, page, title="new")
    assert tree(page) == before and [path.name for path in tmp_path.iterdir()] == ["page"]
    explore(identity_sae(5), site, picture, page, title="new")
    assert b"<title>new</title>" in tree(page)["index.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not an explorer page"):
        explore(identity_sae(5), site, picture, mine)
    assert (mine / "chapter.tex").read_text() == "years of work"


def test_progress_is_told_of_every_pass(site, tmp_path):
    told = []

    def track(items, what, n):
        told.append((what, n))
        return items

    explore(identity_sae(5), site, picture, tmp_path / "page", track=track, batch_size=10)
    assert told == [("look", 3), ("paint", 3), ("pictures", 6)]
