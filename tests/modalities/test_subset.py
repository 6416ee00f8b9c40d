"""A part of a dataset in its own format: bytes, keys and order stay; what would be unpacked elsewhere is refused."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modalities.data import open_dataset
from modalities.data.samples import Bad
from modalities.data.subset import Units, escapes


def jpeg(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for number, (name, content) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode, info.uname = len(content), 1000 + number, 0o640, "anna"
            tar.addfile(info, io.BytesIO(content))
    return path


def members(path):
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read(), m.mtime, m.mode, m.uname) for m in tar]


def test_a_shard_keeps_bytes_headers_and_order_of_what_is_kept(tmp_path):
    long = "deep/" * 30 + "ünïcode"
    source = shard(
        tmp_path / "a.tar",
        [
            ("x.jpg", jpeg(1)),
            ("y.txt", b"two"),
            ("x.txt", b"one \xff"),
            ("y.jpg", jpeg(2)),
            (f"{long}.jpg", jpeg(3)),
            (f"{long}.json", b'{"n": 3}'),
            ("z.jpg", jpeg(4)),
        ],
    )
    units = Units(source)
    assert list(units.open(0).keys) == ["x", "y", long, "z"]
    units.write(0, np.array([True, False, True, False]))(tmp_path / "out.tar")
    wanted = [m for m in members(source) if m[0].startswith(("x.", "deep"))]
    assert members(tmp_path / "out.tar") == wanted and len(wanted) == 4
    assert list(open_dataset(tmp_path / "out.tar").keys) == ["x", long]


def test_nothing_kept_is_an_empty_shard_that_is_whole(tmp_path):
    source = shard(tmp_path / "a.tar", [("x.jpg", jpeg(1)), ("x.txt", b"one")])
    Units(source).write(0, np.array([False]))(tmp_path / "out.tar")
    assert members(tmp_path / "out.tar") == [] and (tmp_path / "out.tar").stat().st_size % 512 == 0


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a/..\\..\\x", "C:\\x", "\\\\host\\x"])
def test_names_that_leave_the_folder_are_bad_samples_and_never_written(tmp_path, name):
    assert escapes(f"{name}.jpg") and not escapes("a/b..c/x.y.jpg")
    source = shard(tmp_path / "a.tar", [(f"{name}.jpg", jpeg(1)), ("x.jpg", jpeg(1)), ("x.txt", b"one")])
    units = Units(source)
    dataset = units.open(0)
    found = [dataset.read(at) for at in range(len(dataset))]
    bad = [each for each in found if isinstance(each, Bad)]
    assert len(bad) == 1 and "outside of its folder" in bad[0].reason
    with pytest.raises(ValueError, match=r"a\.tar: has a member .* outside of its folder"):
        units.write(0, np.ones(len(dataset), bool))
    units.write(0, np.array([not isinstance(each, Bad) for each in found]))(tmp_path / "out.tar")
    assert [m[0] for m in members(tmp_path / "out.tar")] == ["x.jpg", "x.txt"]


ROWS = [{"id": f"r{n}", "caption": f'a, "{n}"\nline', "n": n} for n in range(5)]
KEPT = np.array([True, False, False, True, True])


def write_list(path):
    if path.suffix == ".jsonl":
        path.write_bytes(b"\n".join(json.dumps(row).encode() for row in ROWS))
    elif path.suffix == ".json":
        talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "ä"}]
        path.write_text(json.dumps([row | {"conversations": talk} for row in ROWS]))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_list_keeps_its_rows_with_every_column(tmp_path, suffix):
    source = write_list(tmp_path / f"list{suffix}")
    units, out = Units(source), tmp_path / f"out{suffix}"
    assert list(units.open(0).keys) == [row["id"] for row in ROWS]
    units.write(0, KEPT)(out)
    before, after = open_dataset(source), open_dataset(out)
    assert list(after.keys) == ["r0", "r3", "r4"]
    assert [after.read(at).extra for at in range(3)] == [before.read(at).extra for at in (0, 3, 4)]
    if suffix == ".jsonl":
        lines = source.read_bytes().split(b"\n")
        assert out.read_bytes() == b"".join(lines[at] + b"\n" for at in (0, 3, 4))


def test_shards_of_one_name_and_data_without_parts_are_one_sentence(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shard(tmp_path / folder / "s.tar", [("x.jpg", jpeg(1))])
    with pytest.raises(ValueError, match=r"two shards are called s\.tar"):
        Units(tmp_path / "*" / "s.tar")
    with pytest.raises(ValueError, match="give webdataset shards"):
        Units(tmp_path / "a" / "..")


def test_a_unit_that_has_changed_is_refused(tmp_path):
    source = shard(tmp_path / "a.tar", [("x.jpg", jpeg(1))])
    with pytest.raises(ValueError, match="has changed"):
        Units(source).write(0, np.ones(2, bool))
