"""The page of results: what is in it, what cannot be done with it, and how it looks to a browser."""

import numpy as np
import pytest
from known_codes import HOSTILE
from PIL import Image

from vsae.report import Fact
from vsae.report.results import DIM, Finding, Findings, Frame, Grid, Picture, Section, Strip, spotlight, write


def green():
    return Image.new("RGB", (32, 32), (0, 200, 0))


def page(folder, said="a star"):
    """One of each part, everything said by somebody else."""
    (folder / "explorer").mkdir(parents=True)
    (folder / "explorer/index.html").write_text("<!doctype html><title>inner</title><p id='inner'>here</p>")
    right, wrong = Picture(green(), said, True), Picture(Image.new("RGB", (32, 32)), said, False)
    one = Finding(said, 0.75, (0.5, 0.9), {"floor": 0.25, said: 1.5}, (said, "explorer/index.html#7"), [right, wrong])
    other = Finding("bare", 0.0, None, {}, ("latent 8", "explorer/index.html#8"))
    parts = [
        Strip([Picture(green(), said)]),
        Grid((said, "number"), [(said, "0.5"), ("floor", "0.1")], strong=[0], note=said),
        Findings(said, {"floor": said, said: said}, {said: [one, other]}),
        Frame("explorer/index.html", "explorer"),
    ]
    return write(folder, said, [said], [Fact(said, said, said)], [Section(said, [said], parts)])


def test_bars_marks_and_pictures_are_the_numbers_given(tmp_path, browse):
    index = page(tmp_path / "report")
    seen = browse(
        index,
        """const [bar, bare] = [...document.querySelectorAll('.findings .bar')], track = document.querySelector('.track').getBoundingClientRect();
        const share = (node) => node.getBoundingClientRect().width / track.width, mark = document.querySelector('.findings .m0').getBoundingClientRect();
        const beyond = document.querySelector('.findings .m1').getBoundingClientRect();
        await until(() => [...document.images].every((image) => image.complete));
        return {bar: share(bar), bare: share(bare), mark: (mark.left - track.left) / track.width, beyond: (beyond.left + beyond.width / 2 - track.left) / track.width,
                label: document.querySelector('.scale').getAttribute('aria-label'), strong: document.querySelector('tr.strong').textContent,
                sizes: [...document.images].map((image) => image.naturalWidth), right: document.querySelectorAll('.right').length,
                wrong: document.querySelectorAll('.wrong').length, hash: document.querySelector('.measured a').getAttribute('href'), frames: frames.length};""",
    )
    assert seen["seen"] == []
    found = seen["result"]
    assert found["bar"] == pytest.approx(0.75, abs=0.01) and found["bare"] == 0
    assert found["mark"] == pytest.approx(0.25, abs=0.02) and found["beyond"] == pytest.approx(1, abs=0.02)
    assert found["label"] == "a star: 0.75, floor 0.25, a star 1.50" and found["strong"] == "a star0.5"
    assert found["sizes"] == [32, 32, 32] and (found["right"], found["wrong"], found["frames"]) == (1, 1, 1)
    assert found["hash"] == "explorer/index.html#7"


@pytest.mark.parametrize("csp", [True, False])
def test_nothing_that_is_said_executes(tmp_path, browse, csp):
    index = page(tmp_path / "report", HOSTILE)
    seen = browse(
        index,
        "return {title: document.title, injected: document.querySelectorAll('img[src=\"x\"], [onerror]').length, scripts: document.scripts.length,"
        " heading: document.querySelector('h1').textContent, name: document.querySelector('.name').textContent,"
        " caption: document.querySelector('figcaption').textContent, alt: document.images[0].alt};",
        csp,
    )
    assert seen["seen"] == [] and seen["result"]["title"] != "owned" and seen["result"]["injected"] == 0
    assert seen["result"]["scripts"] == 2, "those of this test"
    assert all(HOSTILE in seen["result"][name] for name in ("heading", "name", "caption", "alt"))


def test_nothing_points_to_a_network_and_equal_pages_are_equal_bytes(tmp_path):
    first, second = page(tmp_path / "a").parent, page(tmp_path / "b").parent
    files = {path.relative_to(first).as_posix(): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(second).as_posix(): path.read_bytes() for path in second.rglob("*") if path.is_file()
    }
    assert len([name for name in files if name.startswith("pictures/")]) == 2, "equal pictures are one file"
    for word in (b"http:", b"https:", b"<script", b"style="):
        assert word not in files["index.html"] + files["results.css"]


def test_a_page_written_again_keeps_its_neighbours_and_drops_old_pictures(tmp_path):
    index = page(tmp_path / "report")
    write(index.parent, "new", [], [], [Section("one", [], [Strip([Picture(Image.new("RGB", (8, 8), (9, 9, 9)))])])])
    assert "<h1>new</h1>" in index.read_text() and (index.parent / "explorer/index.html").is_file()
    assert len(list((index.parent / "pictures").iterdir())) == 1


def test_a_spotlight_leaves_the_strongest_cell_as_it_is_and_dims_the_silent():
    image = Image.new("RGB", (40, 40), (200, 100, 50))
    lit = np.asarray(spotlight(image, np.array([1, 2, 9]), np.array([4.0, 1.0, 99.0]), (2, 2)))
    cells = lit[5, 5], lit[5, 35], lit[35, 5], lit[35, 35]
    expected = [DIM, 1.0, DIM + (1 - DIM) / 2, DIM]  # cell 9 lies on no grid; brightness goes with the root
    for cell, share in zip(cells, expected, strict=True):
        np.testing.assert_allclose(cell, np.array([200, 100, 50]) * share, atol=2)
    assert np.asarray(spotlight(image, np.array([0]), np.array([-1.0]), (2, 2))).max() == pytest.approx(
        200 * DIM, abs=1
    )
