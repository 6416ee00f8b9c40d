"""`vsae demo`, small: from nothing to the page, once more without doing anything again, and what a person can get wrong."""

import json
import re
import shutil

import pytest

from vsae import cli, demo

SMALL = ["--scenes", "240", "--latents", "64", "--tokens", "20000"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished demo, its planted dictionary smaller than the real one's."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.PLANTED, "rows", 2048)
        cli.main(["demo", "--out", str(out), *SMALL])
    return out


def result(made, name):
    return json.loads((made / "eval" / name / "result.json").read_text())


def cells(section, row):
    """Of a section's table row that begins with a name; of the first table that has one."""
    found, *_ = re.findall(rf'<tr[^>]*><th scope="row">{re.escape(row)}</th>(.*?)</tr>', section)
    return re.findall(r"<td>(.*?)</td>", found)


def test_every_number_on_the_page_is_the_file_s(made):
    page = (made / "report/index.html").read_text()
    _, reconstruction, recovery, planted, clip, *_ = page.split("<section ")[1:]
    found = result(made, "recovery-vit")
    assert found["n"]["samples"] > 30 and found["splits"]["report"]["select"] == {
        "kinds": ["patch"],
        "part": [0.8, 1.0],
    }
    for method in found["details"]["methods"]:
        recovered = method["recovery"]
        n = len(recovered["attributes"])
        shown = cells(recovery, method["name"])
        assert shown[1] == f"{round(recovered['share_ap']['0.7']['value'] * n)} of {n}"
        assert (
            shown[2] == f"{recovered['mean_ap']['value']:.2f}"
            and shown[5] == f"{method['shuffled']['mean_ap']['value']:.2f}"
        )
    first = found["details"]["methods"][0]["recovery"]["attributes"]
    for one in first:
        assert f"explorer/index.html#{one['latent']}" in page
        assert (
            f'aria-label="{one["name"].rpartition(":")[2]}: {one["ap"]["value"]:.2f}, constant score {one["ap"]["floor"]:.2f}'
            in page
        )
    for run in demo.RUNS:
        point = result(made, f"reconstruction-{run}")["details"]["baselines"][0]
        model = {"vit": "ViT", "clip": "CLIP", "pairs": "CLIP, whole image"}[run.partition("-")[0]]
        assert cells(reconstruction, f"{model}: {point['name']}")[2] == f"{point['nmse']['value']:.3f}"
    for method in result(made, "recovery-clip")["details"]["methods"]:
        assert cells(clip, method["name"])[2] == f"{method['recovery']['mean_ap']['value']:.2f}"
    for each in result(made, "planted")["details"]["recipes"]:
        assert cells(planted, each["name"])[0].startswith(f"{each['matched']['value']:.2f}")


def test_ticks_under_the_pictures_are_the_scenes_truth(made):
    from vsae.demo.page import World

    world, names = (
        World(made),
        [one["name"] for one in result(made, "recovery-vit")["details"]["methods"][0]["recovery"]["attributes"]],
    )
    for key in list(world.place)[:20]:
        sample = world.data.read(world.place[key])
        own = {name for name in names if ":" in name and world.has(key, name)}
        assert own == set(sample.extra["attributes"]) & set(names)
        if "warm" in names:
            warm = {"colour:red", "colour:orange", "colour:yellow"}
            assert world.has(key, "warm") == bool(warm & set(sample.extra["attributes"]))


def test_the_explorer_is_inside_and_everything_named_is_there(made):
    report = made / "report"
    page = (report / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="([^"#]+)', page))
    assert "explorer/index.html" in named and all((report / name).is_file() for name in named)
    assert {path.name for path in (report / "pictures").iterdir()} == {
        name[9:] for name in named if name.startswith("pictures/")
    }


def test_once_more_does_nothing_again_and_gives_the_same_page(made, capsys):
    def times():
        files = (
            path for path in made.rglob("*") if path.is_file() and path.name != ".lock" and "report" not in path.parts
        )
        return {path: path.stat().st_mtime_ns for path in files}

    before, page = times(), (made / "report/index.html").read_bytes()
    explorer = (made / "report/explorer/index.html").stat().st_mtime_ns
    cli.main(["demo", "--out", str(made), *SMALL])
    after = times()
    assert {p for p in before if before[p] != after[p]} <= {made / "eval/hierarchy.json", made / "store/.location.json"}
    assert (made / "report/index.html").read_bytes() == page
    assert (made / "report/explorer/index.html").stat().st_mtime_ns == explorer
    assert str(made / "report/index.html") in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_one_sentence(made, capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--out", str(made), "--scenes", "241"])
    error = capsys.readouterr().err
    assert "holds another demo; what differs: latents, scenes, tokens" in error and error.count("\n") == 1


def test_what_was_lost_is_made_again(made, tmp_path):
    """A step whose result is missing is done; the others are not."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "eval/recovery-clip/result.json").unlink()
    cli.main(["demo", "--out", str(copy), *SMALL])
    again, before = json.loads((copy / "eval/recovery-clip/result.json").read_text()), result(made, "recovery-clip")
    assert again["value"] == before["value"] and again["interval"] == before["interval"]
