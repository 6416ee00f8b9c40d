"""vsae audit on rendered scenes: a generator that lost its triangles, one that only writes JPEG, one that copies, and the tiny pipeline."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from modalities import microworld
from modalities.data import Sample, open_dataset
from modalities.data.recode import recode, shrunk
from modalities.microworld.attributes import WORDS
from vsae import cli
from vsae.activations import Select
from vsae.activations.select import shares_of
from vsae.audit import bar, folder_name
from vsae.files import read_json, write_json
from vsae.reading import opened

MODEL = ["--model.family", "dinov2", "--model.name", str(microworld.path("vit")), "--batch-size", "64"]
TRAIN = ["--train", "--site", "layernorm", "--latents", "128", "--k", "8", "--tokens", "25000"]
N = 240


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    microworld.write(folder / "real", N, 41_000)
    microworld.write(folder / "no triangle", N, 41_000, multiply={"shape:triangle": 0.0})
    microworld.write(folder / "jpeg", N, 41_000, jpeg=50)
    (folder / "words.txt").write_text("\n".join(", ".join(ws) for a in WORDS.values() for ws in a.values()), "utf-8")
    return folder


def naming(world):
    return ["--names", str(microworld.path("clip")), "--words", str(world / "words.txt")]


@pytest.fixture(scope="module")
def made(world):
    out = world / "out"
    generated = ["--generated", str(world / "no triangle"), str(world / "jpeg")]
    cli.main(
        [
            *("audit", "--real", str(world / "real"), *generated, "--out", str(out), "--control-jpeg", "40"),
            *(*MODEL, *TRAIN, *naming(world)),
        ]
    )
    return out


def concepts(out, generator):
    return [row for row in pq.read_table(out / "concepts.parquet").to_pylist() if row["generator"] == generator]


def test_what_is_gone_is_found_and_jpeg_alone_is_not(made):
    gone, jpeg = concepts(made, "no_triangle"), concepts(made, "jpeg")
    suppressed = [row for row in gone if row["verdict"] == "suppressed"]
    more = [row["relative"] for row in gone if row["verdict"] == "exaggerated"]  # of the shapes drawn in their place
    assert len(suppressed) >= 2 and max(more, default=0.0) < -min(row["relative"] for row in suppressed)
    assert not [row for row in jpeg if row["verdict"] in ("suppressed", "exaggerated")]
    assert all(row["relative"] < 0 and row["high"] < 0 and row["q"] < 0.05 for row in suppressed)
    result = read_json(made / "result.json")["details"]
    assert result["null"]["found"] <= 0.02
    assert result["generators"]["no_triangle"]["n_blindspots"] == len(suppressed) + len(more)


def test_the_strongest_real_images_of_what_is_gone_show_triangles(made, world):
    """The known answer: the most suppressed concept is one of triangles, by the scenes' own tables."""
    from vsae.report.lit import Lit

    worst = min(concepts(made, "no_triangle"), key=lambda row: row["relative"])
    run, site = opened(made / "run", made / "stores" / "real")
    lit = Lit(run.sae, site, Select(("patch",), (0.5, 1.0)), 8, lambda items, what, n: items)
    data = open_dataset(world / "real")
    place = {key: at for at, key in enumerate(data.keys)}
    found = [data.read(place[site.keys[sample]]).extra["attributes"] for sample in lit.samples(worst["latents"][0])]
    assert len(found) == 8 and sum("shape:triangle" in attributes for attributes in found) >= 6  # by chance about 2


def test_the_page_has_the_evidence_of_each_finding(made):
    page = (made / "report/index.html").read_text()
    for row in concepts(made, "no_triangle"):
        if row["verdict"] == "suppressed":
            assert f"latent {row['latents'][0]}" in page
    assert "real images</h3>" in page and "no_triangle images</h3>" in page and "Copies?" in page
    assert "JPEG 40" in page and page.count("<img") > 20


def test_what_is_gone_is_called_by_its_name(made):
    """The known answer: the generator draws no triangles, and CLIP calls what is suppressed so; by chance 1 of 31 words."""
    suppressed = [row for row in concepts(made, "no_triangle") if row["verdict"] == "suppressed"]
    names = [row["name"] for row in sorted(suppressed, key=lambda row: row["relative"])]
    assert names[0] == names[1] == "triangle" and names.count("triangle") >= len(names) / 2
    assert all(
        -1 <= row["name_cosine"] <= 1 and row["name_margin"] >= 0 and len(row["other_names"]) == 4 for row in suppressed
    )
    assert json.loads((made / "concepts.json").read_text()) == pq.read_table(made / "concepts.parquet").to_pylist()
    assert "triangle (latent" in (made / "report/index.html").read_text()


def test_by_name_what_is_gone_comes_first(made):
    """The known answer: of all names, triangle changes most; and the generator that only writes JPEG changes none."""
    rows = pq.read_table(made / "by_name.parquet").to_pylist()
    assert rows == json.loads((made / "by_name.json").read_text())
    gone = sorted((r for r in rows if r["generator"] == "no_triangle"), key=lambda r: -abs(r["relative"]))
    assert gone[0]["name"] == "triangle" and gone[0]["verdict"] == "suppressed" and gone[0]["high"] < 0
    assert not [r for r in rows if r["generator"] == "jpeg" and r["verdict"] in ("suppressed", "exaggerated")]
    above = [r for r in concepts(made, "no_triangle") if r["name"] == "triangle" and r["name_above_chance"]]
    assert set(gone[0]["concepts"]) >= {r["concept"] for r in above}
    assert gone[0]["real"] == pytest.approx(sum(r["real"] for r in above), rel=1e-9)
    assert "By name:" in (made / "report/index.html").read_text()


def test_what_only_the_generator_draws_is_named_by_its_own_images(made, world):
    """The known answer, the other way round: the real images have no triangles, and the generator draws them."""
    out = world / "invented"
    command = ["audit", "--real", str(world / "no triangle"), "--generated", str(world / "real"), "--out", str(out)]
    with pytest.raises(SystemExit):  # both would be called real
        cli.main([*command, "--run", str(made / "run"), *MODEL, *naming(world)])
    shutil.copytree(world / "real", world / "drawn", dirs_exist_ok=True)
    command[4] = str(world / "drawn")
    cli.main([*command, "--run", str(made / "run"), *MODEL, *naming(world)])
    more = [row for row in concepts(out, "drawn") if row["verdict"] == "exaggerated"]
    names = [row["name"] for row in sorted(more, key=lambda row: -row["relative"])]
    assert names[:2] == ["triangle", "triangle"] and names.count("triangle") >= len(names) / 2


def test_the_explorer_has_every_concept_with_its_pictures(made):
    folder = made / "report/explorer"
    text = (folder / "data/index.js").read_text("utf-8")
    table = json.loads(text[text.index("{") : text.rindex("}") + 1])
    rows = concepts(made, "no_triangle")
    assert set(table["id"]) >= {row["concept"] for row in rows} and table["sets"] == ["real", "no_triangle", "jpeg"]
    for row in rows:
        at = table["id"].index(row["concept"])
        assert table["verdicts"][table["generators"][0]["verdict"][at]][0] == row["verdict"]
        assert table["generators"][0]["relative"][at] == pytest.approx(row["relative"], rel=1e-3, abs=1e-6)
        assert table["name"][at].rstrip("?") == (row["name"] or "")
    text = (folder / "data/concepts-00000.js").read_text("utf-8")
    chunk = json.loads(text[text.index("{") : text.rindex("}") + 1])
    first = next(iter(chunk["concepts"].values()))
    assert len(first) == 3 and (folder / chunk["samples"][0][str(first[0][0][0])][0]).is_file()
    assert 'src="explorer/index.html"' in (made / "report/index.html").read_text()


def test_the_same_command_does_nothing_again(made, world, capsys):
    before = {path: path.stat().st_mtime_ns for path in (made / "stores").rglob("part-*")}
    generated = ["--generated", str(world / "no triangle"), str(world / "jpeg")]
    common = [
        "audit",
        "--real",
        str(world / "real"),
        *generated,
        "--control-jpeg",
        "40",
        *MODEL,
        *TRAIN,
        *naming(world),
    ]
    first, note = pq.read_table(made / "concepts.parquet"), read_json(made / "audit.json")
    # an older version's note knows nothing of --skip: 0 is what it did, and is all that goes on with it
    model = {name: value for name, value in note["model"].items() if name != "img_size"}
    write_json(made / "audit.json", {name: value for name, value in note.items() if name != "skip"} | {"model": model})
    for more, said in ((["--skip", "5"], "skip"), (["--model.img-size", "32"], "model.img_size")):
        with pytest.raises(SystemExit):
            cli.main([*common, "--out", str(made), *more])
        assert f"holds another audit; what differs: {said}. Choose" in capsys.readouterr().err
    cli.main([*common, "--out", str(made)])
    write_json(made / "audit.json", note)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert pq.read_table(made / "concepts.parquet").equals(first)


def test_another_audit_in_the_same_folder_is_refused(made, world, capsys):
    with pytest.raises(SystemExit):
        cli.main(
            [
                "audit",
                "--real",
                str(world / "real"),
                "--generated",
                str(world / "jpeg"),
                "--out",
                str(made),
                *MODEL,
                *TRAIN,
            ]
        )
    assert "holds another audit; what differs: control_jpeg, generated" in capsys.readouterr().err


def test_first_tokens_are_left_out_of_training_and_of_every_energy(world, tmp_path):
    """Of 69 tokens (class, 4 registers, 8 x 8 patches) the first 37 are left out: the lower half of each image stays. By hand from the store."""
    out = tmp_path / "out"
    common = ["audit", "--real", str(world / "real"), "--generated", str(world / "no triangle"), "--images", "60", "--control-jpeg", "None"]  # fmt: skip
    cli.main([*common, "--out", str(out), *MODEL, *TRAIN[:3], "--latents", "24", "--k", "4", "--tokens", "2500", "--skip", "37"])  # fmt: skip
    energy, n = {}, int((shares_of(open_dataset(world / "real").keys[:60]) >= 0.5).sum())
    for name in ("real", "no_triangle"):
        run, site = opened(out / "run", out / "stores" / name)
        x = torch.cat([batch.values.float() for batch in site.sequential(4096, Select(("patch",), (0.5, 1.0)))])
        lower = x.unflatten(0, (-1, 64))[:n, 32:]  # the generated images that are paired with those
        code = run.sae.encode(lower.flatten(0, 1)).dense(run.sae.n_latents)
        energy[name] = code.unflatten(0, (-1, 32)).mean(1).mean(0).tolist()
    assert run.skip == 37 and run.fingerprint["select"] == {"kinds": ["patch"], "part": [0.0, 0.5], "skip": 37}
    rows = [row for row in concepts(out, "no_triangle") if len(row["latents"]) == 1]
    assert len(rows) > 5
    for row in rows:
        (latent,) = row["latents"]
        assert row["real"] == pytest.approx(energy["real"][latent], rel=1e-4, abs=1e-6)
        assert row["generated"] == pytest.approx(energy["no_triangle"][latent], rel=1e-4, abs=1e-6)


def test_a_copied_image_is_the_first_candidate(made, world, tmp_path):
    """Fresh scenes, and among them one real image with another key: the only copy."""
    microworld.write(tmp_path / "shards", 40, 42_000)
    fresh, real = open_dataset(tmp_path / "shards"), open_dataset(world / "real")
    (tmp_path / "fresh").mkdir()
    for at in range(40):
        fresh.read(at).image.save(tmp_path / "fresh" / f"n{at:03}.png")
    run = ["--run", str(made / "run"), "--generated", str(tmp_path / "fresh")]
    source = int(np.flatnonzero(shares_of(real.keys) >= 0.5)[0])  # the others were trained on
    nearest = {}
    for name, copied in (("without", None), ("with", source)):
        if copied is not None:
            real.read(copied).image.save(tmp_path / "fresh" / "copied.png")
        out = tmp_path / name
        cli.main(["audit", "--real", str(world / "real"), *run, "--out", str(out), "--control-jpeg", "None", *MODEL])
        nearest[name] = read_json(out / "result.json")["details"]["generators"]["fresh"]["memorised"]["nearest"]
    assert nearest["without"]["nearest"][0]["distance"] > 0.03
    assert nearest["with"]["candidates"] >= 1
    first = nearest["with"]["nearest"][0]
    assert "copied" in first["key"] and first["real"] == real.keys[source] and first["distance"] < 0.01


def test_recoding_keeps_keys_captions_and_size_and_is_done_once(tmp_path, world):
    real = open_dataset(world / "real")
    path = recode(real, tmp_path / "a", jpeg=30, side=32, most=5)
    again = open_dataset(path)
    assert list(again.keys) == list(real.keys[:5])
    for at in range(5):
        ours, theirs = again.read(at), real.read(at)
        assert isinstance(ours, Sample) and ours.captions == theirs.captions and ours.image.size == (32, 32)
        assert np.abs(np.asarray(ours.image, float) - np.asarray(shrunk(theirs.image, 32), float)).mean() < 25
    before = path.stat().st_mtime_ns
    assert recode(real, tmp_path / "a", jpeg=30) == path and path.stat().st_mtime_ns == before
    exact = open_dataset(recode(real, tmp_path / "b", most=2)).read(1)
    assert (np.asarray(exact.image) == np.asarray(real.read(1).image)).all()
    assert shrunk(Image.new("RGB", (100, 40)), 50).size == (50, 20)
    with pytest.raises(ValueError, match="quality of 1 to 95"):
        recode(real, tmp_path / "c", jpeg=99)


def test_names_of_generators_are_safe_to_be_folders():
    assert folder_name("runwayml/stable-diffusion-v1-5") == "stable-diffusion-v1-5"
    assert folder_name("a/b{000..003}.tar") == "b_000" and folder_name("/x/<i>é") == "_i_é"
    assert folder_name("drawn/flux/images.jsonl") == "flux"  # a list that generate() wrote


def test_a_bar_by_counts_ends_with_the_last(capsys):
    step = bar("draw")
    for done in (2, 4, 5):
        step(done, 5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "there is no generator to audit"),
        (["--generated", "a/x", "b/x.tar"], "two sets of images would be called 'x'"),
        (["--generated", "real"], "would be called 'real'"),
        (["--generated", "a", "--skip", "-1"], "skip is -1, but it counts tokens"),
    ],
)
def test_mistakes_are_one_sentence(world, tmp_path, capsys, wrong, said):
    with pytest.raises(SystemExit):
        cli.main(["audit", "--real", str(world / "real"), "--out", str(tmp_path / "out"), *MODEL, *TRAIN, *wrong])
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        cli.main(["audit", "--real", "r", "--generated", "g", "--out", str(tmp_path / "o"), *MODEL])
    assert "give --run DIR, or --train" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["audit", "--real", "r", "--generated", "g", "--out", str(tmp_path / "o"), *MODEL, "--run", "run", "--skip", "1"])  # fmt: skip
    assert "--skip is of --train" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_the_tiny_pipeline_draws_what_is_then_compared(made, world, tmp_path):
    out = tmp_path / "out"
    drawn = ["--pipelines", str(microworld.path("diffusion")), "--images", "12", "--steps", "2"]
    cli.main(["audit", "--real", str(world / "real"), *drawn, "--run", str(made / "run"), "--out", str(out), *MODEL])
    listed = [json.loads(line) for line in (out / "generated/diffusion/images.jsonl").read_text().splitlines()]
    assert len(listed) == 12 and len({row["seed"] for row in listed}) == 12
    assert [row["key"] for row in listed] == list(open_dataset(world / "real").keys[:12])
    generators = read_json(out / "result.json")["details"]["generators"]
    assert generators["diffusion"]["paired"] and generators["diffusion"]["n_generated"] == 12
    images = sorted((out / "generated/diffusion/images").iterdir())
    before = images[0].read_bytes()
    images[0].unlink()
    shutil.rmtree(out / "report")
    cli.main(["audit", "--real", str(world / "real"), *drawn, "--run", str(made / "run"), "--out", str(out), *MODEL])
    assert images[0].read_bytes() == before and (out / "report/index.html").is_file()
