"""The page in a real browser, opened from disk: it works without a server, and nothing in the data executes."""

import pytest
import torch
from known_codes import HOSTILE, identity_sae, images_site, texts_site
from PIL import Image

from vsae.report import Fact, explore
from vsae.report.latents import Plan

GREEN = (40, 200, 40)


def green(row):
    return Image.new("RGB", (64, 64), GREEN)


@pytest.fixture
def page(tmp_path):
    """Four latents on five images with a class token and 2 x 3 patches. Latent 0 fires on image 1 only: right half of the top row, and class token."""
    codes = torch.zeros(5, 7, 4)
    codes[1, 0, 0], codes[1, 3, 0], codes[2, 4, 0] = 1, 4, 2
    codes[:, 1, 1] = torch.arange(5) + 1.0
    codes[:, 2:, 2] = 0.5
    return explore(identity_sae(4), images_site(codes, (2, 3)), green, tmp_path / "page", plan=Plan(top=3, random=2))


SHOWN = "document.querySelector('#latent h2').textContent"


def test_latents_their_pictures_and_their_heat_maps(page, browse):
    seen = browse(
        page,
        """location.hash = '#0'; await shows(0);
        const figure = document.querySelector('#latent figure'), canvas = figure.querySelector('canvas');
        const pixel = (x, y) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];
        await figure.querySelector('img').decode();
        return {title: document.querySelector('#latent h2').textContent, figures: document.querySelectorAll('#latent figure').length,
                value: figure.querySelector('b').textContent, image: figure.querySelector('img').naturalWidth, size: [canvas.width, canvas.height],
                hot: pixel(2, 0), cold: pixel(0, 0), badges: figure.querySelector('.badges').textContent, rows: document.querySelectorAll('#rows .line').length,
                bars: document.querySelectorAll('.bars i').length};""",
    )
    assert seen["seen"] == []
    result = seen["result"]
    assert result["title"] == "Latent 0" and result["figures"] == 2 and result["value"] == "4" and result["image"] == 64
    assert (
        result["size"] == [3, 2]
        and result["hot"][3] > result["cold"][3] > 0
        and result["hot"][0] > 200 > result["cold"][0]
    )
    assert result["badges"] == "cls 25%" and result["rows"] == 3 and result["bars"] == 24


def test_keys_move_search_finds_and_columns_sort(page, browse):
    seen = browse(
        page,
        f"""const shown = async () => {{ await pause(100); return {SHOWN}; }};
        const list = () => [...document.querySelectorAll('#rows .line .id')].map((cell) => cell.textContent);
        const search = document.getElementById('search'), type = (text) => {{ search.value = text; search.oninput(); }};
        const found = {{start: list(), first: await shown()}};
        press('ArrowDown'); found.down = await shown();
        press('ArrowDown'); press('ArrowDown'); press('ArrowDown'); found.end = await shown();
        press('ArrowUp'); found.up = await shown();
        press('/'); found.focus = document.activeElement.id;
        type('2'); found.number = list();
        type('photo'); found.words = list();
        type('nothing'); found.none = list(); press('ArrowDown'); found.stays = await shown();
        type(''); document.getElementById('silent').click(); found.silent = list();
        document.querySelector('[data-column=high]').click(); found.sorted = list();
        document.querySelector('[data-column=high]').click(); found.reversed = list();
        press('Escape', search); found.blurred = document.activeElement.id;
        location.hash = '#3'; await shows(3); found.dead = document.getElementById('latent').textContent;
        location.hash = '#2'; await shows(2);
        press('h'); found.heat = [getComputedStyle(document.querySelector('canvas')).opacity, document.querySelector('.set-heat').checked];
        document.querySelector('figure').click(); found.large = document.getElementById('large').open;
        return found;""",
    )
    assert seen["seen"] == []
    found = seen["result"]
    assert found["start"] == ["2", "1", "0"] and found["first"] == "Latent 2"
    assert (found["down"], found["end"], found["up"]) == ("Latent 1", "Latent 0", "Latent 1")
    assert (
        found["focus"] == "search" and found["number"] == ["2"] and found["none"] == [] and found["stays"] == "Latent 1"
    )
    assert found["silent"] == ["2", "1", "0", "3"]
    assert found["sorted"] == ["1", "0", "2", "3"] and found["reversed"] == ["3", "2", "0", "1"]
    assert found["blurred"] != "search" and "Silent" in found["dead"]
    assert found["heat"] == ["0", False] and found["large"] is True


@pytest.mark.parametrize("csp", [True, False])
def test_nothing_in_captions_labels_keys_or_titles_executes(tmp_path, browse, csp):
    codes = torch.ones(4, 3, 2)
    site = images_site(codes, (1, 2), caption=HOSTILE, label=HOSTILE)
    for number, row in enumerate(site.table):
        row["key"] = row["path"] = f"{number}{HOSTILE}"
    fact = Fact(HOSTILE, HOSTILE, HOSTILE)
    index = explore(
        identity_sae(2),
        site,
        green,
        tmp_path / "page",
        title=HOSTILE,
        about=[HOSTILE],
        facts=[fact],
        plan=Plan(top=2, random=2),
    )
    assert sorted(path.name for path in (index.parent / "images/000").iterdir()) == [f"{i:06d}.jpg" for i in range(4)]
    seen = browse(
        index,
        """await until(() => document.querySelector('figure')); document.querySelector('figure').click(); await pause(300);
        return {title: document.title, injected: document.querySelectorAll('img[src="x"], [onerror]').length, scripts: document.scripts.length,
                caption: document.querySelector('figcaption').textContent, hint: document.querySelector('.title .hint').textContent,
                heading: document.querySelector('h1').textContent, large: document.getElementById('large').textContent};""",
        csp,
    )
    assert seen["seen"] == []
    result = seen["result"]
    assert result["title"] != "owned" and result["injected"] == 0
    assert result["scripts"] == 6  # shared.js, page.js, index.js, one chunk, and this test's two
    assert (
        HOSTILE in result["caption"]
        and HOSTILE in result["hint"]
        and HOSTILE in result["heading"]
        and HOSTILE in result["large"]
    )


def test_the_policy_stops_what_escaping_might_miss(page, browse):
    seen = browse(
        page,
        """const hurt = document.createElement('div'); hurt.innerHTML = '<img src="x" onerror="document.title=1">'; document.body.append(hurt);
        const remote = document.createElement('img'); remote.src = 'https://127.0.0.1:1/a.png'; document.body.append(remote);
        await until(() => seen.length > 1); return document.title;""",
    )
    assert seen["result"] == "Latents"
    assert any("script-src" in line for line in seen["seen"]) and any("img-src" in line for line in seen["seen"])


def test_texts_without_a_grid_get_a_strip_and_missing_pictures_a_grey_tile(tmp_path, browse):
    codes = torch.zeros(3, 4, 2)
    codes[1, 2, 0] = 2
    index = explore(identity_sae(2), texts_site(codes, caption="two red cubes"), lambda row: None, tmp_path / "page")
    seen = browse(
        index,
        """await until(() => document.querySelector('canvas'));
        const canvas = document.querySelector('canvas'), data = canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data;
        return {size: [canvas.width, canvas.height], strip: canvas.className, hottest: [0, 1, 2, 3].map((i) => data[4 * i]),
                tile: document.querySelector('.missing').textContent, caption: document.querySelector('figcaption').textContent};""",
    )
    assert seen["seen"] == []
    result = seen["result"]
    assert result["size"] == [4, 1] and "strip" in result["strip"] and result["hottest"].index(255) == 2
    assert result["tile"] == "no picture" and "two red cubes" in result["caption"]


def test_a_chunk_that_was_not_copied_is_named(page, browse):
    (page.parent / "data/latents-00000.js").unlink()
    seen = browse(
        page,
        "await until(() => document.querySelector('#latent p')); return document.getElementById('latent').textContent;",
    )
    assert "data/latents-00000.js is missing" in seen["result"]


def test_thousands_of_latents_draw_only_the_rows_in_view(tmp_path, browse):
    n = 1000
    codes = torch.zeros(2, 2, n)
    codes[0, 1] = torch.arange(n) + 1.0
    index = explore(identity_sae(n), images_site(codes, (1, 1)), green, tmp_path / "page", near=2)
    seen = browse(
        index,
        """const scroller = document.getElementById('scroller'), count = () => document.querySelectorAll('#rows .line').length, before = count();
        const ids = () => [...document.querySelectorAll('#rows .id')].map((cell) => Number(cell.textContent));
        scroller.scrollTop = 600 * 34; await until(() => ids().includes(605));
        const near = ids().includes(605), after = count();
        location.hash = '#999'; await shows(999);
        return {before, after, near, latent: document.querySelector('h2').textContent, chunks: vsae.chunks.size};""",
    )
    assert seen["seen"] == []
    result = seen["result"]
    assert 5 < result["before"] < 60 and 5 < result["after"] < 60 and result["near"]
    assert result["latent"] == "Latent 999" and result["chunks"] == 2
