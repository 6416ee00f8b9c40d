"""vsae filter on rendered pairs with planted mismatches: what is kept, its bytes, resuming, two processes, mistakes."""

import os
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from modalities import microworld
from vsae import cli
from vsae.files import read_json, write_json

MODEL = ["--model.family", "clip", "--model.name", str(microworld.path("clip")), "--batch-size", "20"]
TRAIN = ["--train", "--latents", "64", "--k", "8", "--tokens", "6000"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filter") / "pairs"
    microworld.write(folder, 120, 31_000, per_shard=50, corrupt=0.3, corruptions=("mismatched",))
    return folder


@pytest.fixture(scope="module")
def made(pairs):
    out = pairs.parent / "out"
    cli.main(["filter", "--data", str(pairs), "--out", str(out), "--share", "0.5", *MODEL, *TRAIN])
    return out


def rows(out):
    return pq.read_table(out / "scores.parquet").to_pylist()


def members(path):
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read(), m.mtime) for m in tar]


def test_half_is_kept_and_most_of_it_matches(made):
    table = rows(made)
    kept = np.array([row["kept"] for row in table])
    matched = np.array([row["wrong"] is None for row in table])
    score = np.array([row["score_agreement"] for row in table])
    assert len(table) == 120 and kept.sum() == 60
    assert score[kept].min() >= score[~kept].max()
    assert matched[kept].mean() > 0.9 > 0.8 > matched.mean()
    assert {row["wrong"] for row in table} == {None, "mismatched"}
    assert all(len(row["concepts"]) == len(row["strengths"]) <= 5 for row in table)
    assert all(sum(row["strengths"]) <= row["score_agreement"] + 1e-5 for row in table)


def test_shards_hold_the_kept_samples_byte_for_byte(pairs, made):
    kept = {row["key"] for row in rows(made) if row["kept"]}
    for source in sorted(pairs.glob("*.tar")):
        wanted = [m for m in members(source) if m[0].split(".")[0] in kept]
        assert members(made / "shards" / source.name) == wanted
    assert len(list((made / "shards").glob("*.tar"))) == 3


def test_the_page_says_what_was_kept_and_how_well_scores_know(made):
    page = (made / "report/index.html").read_text()
    assert ">60<" in page and "AUROC of matched pairs (floor 0.5)" in page and "Dropped, the lowest scores" in page
    for each in rows(made)[:3]:
        assert each["shard"] in page


def test_another_budget_takes_the_scores_that_are_there(pairs, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    common = ["filter", "--data", str(pairs), "--out", str(out), *MODEL, *TRAIN]
    cli.main([*common, "--count", "31", "--stratify", "source", "--method", "clip"])
    assert {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()} == before
    table = rows(out)
    for shard, wanted in (("scenes-000000.tar", 13), ("scenes-000001.tar", 13), ("scenes-000002.tar", 5)):
        mine = [row for row in table if row["shard"] == shard]
        kept = [row["score_clip"] for row in mine if row["kept"]]
        assert abs(len(kept) - wanted) <= 1
        assert min(kept) >= max(row["score_clip"] for row in mine if not row["kept"])
        names = {m[0].split(".")[0] for m in members(out / "shards" / shard)}
        assert names == {row["key"] for row in mine if row["kept"]}


def test_a_lost_block_is_scored_again_and_nothing_else_changes(pairs, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    block = sorted((out / "scores").iterdir())[1]
    block.unlink()
    (out / "scores" / f".{block.name}.partial").write_bytes(b"half a table")
    (out / "shards" / "scenes-000001.tar").unlink()
    cli.main(["filter", "--data", str(pairs), "--out", str(out), "--share", "0.5", *MODEL, *TRAIN])
    assert rows(out) == rows(made)
    for each in (made / "shards").glob("*.tar"):
        assert (out / "shards" / each.name).read_bytes() == each.read_bytes()


def test_two_processes_write_what_one_does(pairs, made, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vsae.cli", "filter", "--data", str(pairs), "--out", str(tmp_path / "out"), "--share", "0.5"]  # fmt: skip
    run = ["--run", str(made / "run"), *MODEL]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "2"}
    processes = [
        subprocess.Popen(
            [*command, *run], env={**os.environ, **shared, "RANK": str(rank)}, cwd=Path(__file__).parents[1]
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    ours, theirs = rows(tmp_path / "out"), rows(made)
    assert [row["key"] for row in ours] == [row["key"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (
            a["score_agreement"] == pytest.approx(b["score_agreement"], abs=1e-5)
            and a["score_random"] == b["score_random"]
        )
    kept = {row["key"] for row in ours if row["kept"]}
    written = {m[0].split(".")[0] for each in (tmp_path / "out/shards").glob("*.tar") for m in members(each)}
    assert written == kept and len(kept) == 60


def test_hostile_and_unreadable_samples_are_counted_named_and_never_kept(pairs, made, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(sorted(pairs.glob("*.tar"))[0]) as tar, tarfile.open(data / "<b>.tar", "w") as out:
        for number, member in enumerate(list(tar)[:20]):
            content = tar.extractfile(member)
            if member.name.endswith(".jpg") and number < 6:
                member.name = f"../{member.name}"
            out.addfile(member, content)
    cli.main(
        [
            "filter",
            "--data",
            str(data),
            "--run",
            str(made / "run"),
            "--out",
            str(tmp_path / "out"),
            "--share",
            "1",
            *MODEL,
        ]
    )
    table = rows(tmp_path / "out")
    bad = [row for row in table if row["reason"]]
    assert any("outside of its folder" in row["reason"] for row in bad) and not any(row["kept"] for row in bad)
    assert all(row["kept"] for row in table if not row["reason"])
    page = (tmp_path / "out/report/index.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;.tar" in page and "outside of its folder" in page


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--share", "0.5"], "give --run DIR, or --train"),
        (["--train"], "give one of --share, --count, --threshold"),
        (["--train", "--share", "0.5", "--count", "3"], "share and count given"),
        (["--train", "--threshold", "1", "--stratify", "length"], "give --share or --count"),
        (["--run", "nowhere", "--share", "0.5"], "holds no run"),
        (["--run", "nowhere", "--share", "0.5", "--skip", "1"], "leave it out with a run, or a clip model"),
        (["--train", "--share", "0.5", "--skip", "1"], "leave it out with a run, or a clip model"),
    ],
)
def test_mistakes_are_one_sentence(pairs, tmp_path, capsys, wrong, said):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["filter", "--data", str(pairs), "--out", str(tmp_path / "out"), *MODEL, *wrong])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and error.count("\n") == 1


def test_scores_of_another_job_are_not_mixed_in(pairs, made, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    with pytest.raises(SystemExit):
        cli.main(["filter", "--data", str(pairs), "--out", str(out), "--share", "0.5", *MODEL, *TRAIN, "--seed", "1"])
    assert "what differs: seed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["filter", "--data", str(pairs), "--run", str(made / "run"), "--out", str(tmp_path / "new"), "--share", "0.5", "--method", "both", *MODEL])  # fmt: skip
    assert "choose from agreement, clip, length, random" in capsys.readouterr().err
    assert read_json(made / "filter.json")["seed"] == 0


def test_an_older_filter_goes_on_as_before_only(pairs, made, tmp_path, capsys):
    """Its note knows nothing of --skip and --fit-samples: their defaults are what it did."""
    out = tmp_path / "out"
    shutil.copytree(made, out)
    note = read_json(made / "filter.json")
    assert note.pop("skip") == 0 and note.pop("fit_samples") == 1000
    write_json(out / "filter.json", note)
    command = ["filter", "--data", str(pairs), "--out", str(out), "--share", "0.5", *MODEL, *TRAIN]
    with pytest.raises(SystemExit):
        cli.main([*command, "--fit-samples", "5"])
    assert "holds another filter; what differs: fit_samples. Choose" in capsys.readouterr().err
    cli.main(command)
    assert rows(out) == rows(made)
