"""Photos as people have them: every mode and rotation, broken files, hostile names, shards cut anywhere, lists with mistakes."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from modalities.data import Bad, Dataset, Sample, describe, open_dataset
from modalities.data.decode import Unreadable, decode, decode_mask
from modalities.data.text import distinct, find_captions, find_label, printable, sorted_classes

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(content, **options):
    return decode(io.BytesIO(content), **options)


def pixels(content):
    return np.asarray(decoded(content)).tolist()


def photo(seed=0, size=(24, 16)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


JPEG, PNG = encoded(photo(), "JPEG"), encoded(photo(), "PNG")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def tar(path, members, end=True):
    """Members (name, content) as a tar, without its end mark on request."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        stop = archive.offset
    if not end:
        os.truncate(path, stop)
    return path


def keys(dataset):
    return [dataset.read(i).key for i in range(len(dataset))]


def good(dataset):
    return [s for i in range(len(dataset)) if isinstance(s := dataset.read(i), Sample)]


def bad(dataset):
    return [b for i in range(len(dataset)) if isinstance(b := dataset.read(i), Bad)]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")  # pytest resets ours
class TestDecode:
    def test_rgb_is_what_pil_decodes(self):
        assert pixels(PNG) == np.asarray(photo()).tolist()
        assert pixels(JPEG) == np.asarray(Image.open(io.BytesIO(JPEG))).tolist()

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_exif_rotation_is_applied_once(self, orientation, format):
        exif = Image.Exif()
        exif[0x0112] = orientation
        lossless = {"lossless": True} if format == "WEBP" else {}
        content = encoded(photo(), format, exif=exif, **lossless)
        image = decoded(content)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert image.size == ((16, 24) if orientation >= 5 else (24, 16))
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), expected)

    def test_damaged_exif_does_not_lose_the_photo(self):
        assert decoded(encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == (24, 16)

    def test_grey_is_repeated(self):
        assert pixels(encoded(Image.fromarray(np.array([[0, 77, 255]], np.uint8)))) == [[[v] * 3 for v in (0, 77, 255)]]
        assert pixels(encoded(Image.new("1", (1, 1), 1))) == [[[255] * 3]]

    def test_sixteen_bits_are_scaled_not_clipped(self):
        grey = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
        expected = [[[v] * 3 for v in (0, 1, 128, 255)]]
        assert pixels(encoded(Image.fromarray(grey))) == expected
        assert pixels(encoded(Image.fromarray(grey), "TIFF")) == expected
        assert pixels(b"P5 4 1 65535\n" + grey.astype(">u2").tobytes()) == expected

    def test_floats_from_0_to_1_are_scaled_and_others_refused(self):
        content = encoded(Image.fromarray(np.array([[0, 0.2, 1]], np.float32)), "TIFF")
        assert pixels(content) == [[[0] * 3, [51] * 3, [255] * 3]]
        for values in ([-1, 1], [0, 300], [0, np.nan]):
            with pytest.raises(Unreadable, match="which of them is white is not known"):
                decoded(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF"))

    def test_transparent_shows_white(self):
        rgba = Image.fromarray(np.array([[[9, 8, 7, 0], [9, 8, 7, 255], [255, 0, 0, 51]]], np.uint8))
        assert pixels(encoded(rgba)) == [[[255, 255, 255], [9, 8, 7], [255, 204, 204]]]
        assert pixels(encoded(rgba, "WEBP", lossless=True, exact=True))[0][:2] == [[255, 255, 255], [9, 8, 7]]
        assert pixels(encoded(Image.fromarray(np.array([[[50, 0], [50, 255]]], np.uint8), "LA"))) == [
            [[255] * 3, [50] * 3]
        ]

    @pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
    def test_palette_with_and_without_transparency(self, transparency):
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        plain = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
        assert pixels(encoded(image)) == [plain]
        assert pixels(encoded(image, transparency=transparency)) == [[plain[0], [255] * 3, plain[2]]]

    def test_transparent_colour_of_rgb_and_grey_png(self):
        two = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
        assert pixels(encoded(two, transparency=(1, 2, 3))) == [[[255] * 3, [4, 5, 6]]]
        assert pixels(encoded(Image.fromarray(np.array([[7, 8]], np.uint8)), transparency=8)) == [[[7] * 3, [255] * 3]]

    def test_cmyk_jpeg_keeps_its_colours(self):
        red = Image.new("RGB", (16, 16), (220, 30, 20))
        mean = np.mean(pixels(encoded(red.convert("CMYK"), "JPEG", quality=95)), axis=(0, 1))
        np.testing.assert_allclose(mean, [220, 30, 20], atol=6)  # an inverted one would be near (35, 225, 235)

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_an_animation_is_its_first_frame(self, format):
        first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
        lossless = {"lossless": True} if format == "WEBP" else {}
        content = encoded(first, format, save_all=True, append_images=[second], **lossless)
        assert getattr(Image.open(io.BytesIO(content)), "n_frames", 1) == 2
        assert pixels(content)[0][0] == [255, 0, 0]

    def test_what_is_broken_has_a_reason_a_person_understands(self):
        big = encoded(photo(size=(200, 200)), "JPEG")
        for content, reason in [
            (b"", "is an empty file"),
            (b"<html>404 not found</html>", "is no image in a known format"),
            (big[: len(big) // 2], "cannot be decoded: image file is truncated"),
            (encoded(photo(size=(99, 99)))[:-2000], "cannot be decoded: "),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image in a known format"),
        ]:
            with pytest.raises(Unreadable, match=reason):
                decoded(content)

    def test_every_cut_and_many_flips_end_as_image_or_reason(self):
        rng = np.random.default_rng(0)
        for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
            content = encoded(photo(size=(9, 7)), format)
            spoiled = [content[:n] for n in range(0, len(content), 7)]
            for _ in range(60):
                flipped = bytearray(content)
                flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
                spoiled.append(bytes(flipped))
            for candidate in spoiled:
                try:
                    assert decoded(candidate, max_pixels=10**6).mode == "RGB"
                except Unreadable as error:
                    assert str(error) and "\n" not in str(error)

    def test_too_large_is_known_from_the_header(self):
        huge = bytearray(PNG)
        huge[16:24] = (10_000).to_bytes(4, "big") * 2  # the header says 100 million pixels; there is data for 384
        huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
        with pytest.raises(Unreadable, match="is too large: 10000 x 10000 pixels, the limit is 20 million"):
            decoded(bytes(huge), max_pixels=20_000_000)
        huge[16:24] = (40_000).to_bytes(4, "big") * 2
        huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
        with pytest.raises(Unreadable, match="1600000000 pixels"):
            decoded(bytes(huge))

    def test_a_mask_keeps_its_indices(self):
        indices = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
        image = Image.fromarray(indices, "P")
        image.putpalette(list(range(256)) * 3)
        np.testing.assert_array_equal(np.asarray(decode_mask(io.BytesIO(encoded(image, transparency=0)))), indices)
        many = np.array([[0, 300, 65535]], np.uint16)
        np.testing.assert_array_equal(np.asarray(decode_mask(io.BytesIO(encoded(Image.fromarray(many))))), many)

    def test_pil_warns_nobody(self, tmp_path):
        image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        image.putpalette([0, 0, 0, 9, 9, 9])
        write(tmp_path / "a.png", encoded(image, transparency=b"\xff\x00"))
        write(tmp_path / "b.jpg", encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
        code = "import sys; from modalities.data import open_dataset; d = open_dataset(sys.argv[1]); print([d.read(i).image.mode for i in (0, 1)])"
        done = subprocess.run([sys.executable, "-W", "always", "-c", code, tmp_path], capture_output=True, text=True)
        assert done.stdout.strip() == "['RGB', 'RGB']" and "PIL" not in done.stderr


class TestFolder:
    def test_any_depth_sorted_with_the_holding_folder_as_class(self, tmp_path):
        for name in (
            "z.png",
            "cat/2.png",
            "cat/10.JPG",
            "train/dog/deep.png",
            "cat/.hidden.png",
            ".git/x.png",
            "cat/notes.txt",
        ):
            write(tmp_path / name, JPEG if name.endswith("JPG") else PNG)
        dataset = open_dataset(tmp_path)
        samples = good(dataset)
        assert [(s.key, s.path, s.label) for s in samples] == [
            ("cat/10", "cat/10.JPG", "cat"),
            ("cat/2", "cat/2.png", "cat"),
            ("train/dog/deep", "train/dog/deep.png", "dog"),
            ("z", "z.png", None),
        ]
        assert dataset.classes() == ("cat", "dog") and len(dataset) == 4 and list(dataset.keys) == keys(dataset)
        assert np.asarray(samples[1].image).tolist() == np.asarray(photo()).tolist()
        assert describe(dataset).startswith(f"folder {tmp_path.name}: 4 candidates, 2 classes (cat, dog), digest ")

    def test_keys_keep_the_extension_only_where_two_would_meet(self, tmp_path):
        for name in ("a.jpg", "a.png", "a.jpg.png", "b.png", "b.v2.png"):
            write(tmp_path / name, PNG)
        assert keys(open_dataset(tmp_path)) == ["a.jpg", "a.jpg.png", "a.png", "b", "b.v2"]

    def test_hostile_names_survive_to_json_and_parquet(self, tmp_path):
        names = [b"line\nbreak.png", b'quote".png', b"<script>.png", b"caf\xe9.png", "café.png".encode(), b"tab\t'.png"]
        for name in names:
            write(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"c\xff", name))), PNG)
        samples = good(open_dataset(tmp_path))
        assert len(samples) == len({s.key for s in samples}) == len(names)
        assert "c\\udcff/café" in {s.key for s in samples} and samples[0].label == "c\\udcff"
        for text in (s.key for s in samples):
            assert json.loads(json.dumps(text, ensure_ascii=False).encode()) == text
            assert pa.array([text]).to_pylist() == [text]

    def test_bad_files_are_named_and_the_rest_is_read(self, tmp_path):
        write(tmp_path / "1.png", PNG)
        write(tmp_path / "2.jpg", JPEG[:-200])
        write(tmp_path / "3.gif", b"")
        (tmp_path / "4.png").symlink_to("nowhere.png")
        write(tmp_path / "5.png", encoded(photo(size=(40, 40))))
        (tmp_path / "6.png").mkdir()
        os.mkfifo(tmp_path / "7.png")
        dataset = open_dataset(tmp_path, max_pixels=1000)
        assert [(b.key, b.path) for b in bad(dataset)] == [
            ("2", "2.jpg"),
            ("3", "3.gif"),
            ("4", "4.png"),
            ("5", "5.png"),
        ]
        assert [b.reason.split(":")[0] for b in bad(dataset)] == [
            "cannot be decoded",
            "is an empty file",
            "cannot be read",
            "is too large",
        ]
        (tmp_path / "1.png").unlink()
        assert dataset.read(0) == Bad("1", "1.png", "cannot be read: No such file or directory")

    def test_an_error_of_the_machine_is_raised_not_blamed_on_the_data(self, tmp_path, monkeypatch):
        write(tmp_path / "1.png", PNG)
        dataset = open_dataset(tmp_path)

        def full(*_, **__):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("builtins.open", full)
        with pytest.raises(OSError, match="Too many open files"):
            dataset.read(0)

    def test_linked_folders_are_followed_but_not_in_circles(self, tmp_path):
        write(tmp_path / "real/1.png", PNG)
        (tmp_path / "root").mkdir()
        (tmp_path / "root/linked").symlink_to(tmp_path / "real")
        (tmp_path / "real/up").symlink_to(tmp_path / "root")
        assert keys(open_dataset(tmp_path / "root")) == ["linked/1"]

    def test_identity_is_of_the_data_not_of_the_place(self, tmp_path):
        for place in ("here", "there"):
            write(tmp_path / place / "photos/cat/1.png", PNG)
        here, there = (open_dataset(tmp_path / place / "photos") for place in ("here", "there"))
        assert here.identity() == there.identity() and json.loads(json.dumps(here.identity())) == here.identity()
        assert str(tmp_path) not in json.dumps(here.identity())
        write(tmp_path / "there/photos/cat/1.png", PNG + b"\0")
        assert open_dataset(tmp_path / "there/photos").identity()["digest"] != here.identity()["digest"]
        assert open_dataset(tmp_path / "here/photos", max_pixels=9).identity() != here.identity()

    def test_mistakes_are_sentences(self, tmp_path):
        (tmp_path / "empty").mkdir()
        write(tmp_path / "text/readme.txt", b"hello")
        write(tmp_path / "both/1.png", PNG)
        tar(tmp_path / "both/x.tar", [("1.png", PNG)])
        write(tmp_path / "1.png", PNG)
        for path, error, words in [
            ("empty", ValueError, "empty is empty: give one with photos"),
            ("text", ValueError, "text holds no images"),
            ("missing", FileNotFoundError, "there is no .*missing: give"),
            ("both", ValueError, r"holds images and .tar shards: name the shards, as in .*both/\*.tar"),
            ("1.png", ValueError, "1.png is no dataset: give a folder"),
        ]:
            with pytest.raises(error, match=words):
                open_dataset(tmp_path / path)
        with pytest.raises(ValueError, match="max_pixels is 0: choose 1 to 178956970"):
            open_dataset(tmp_path / "both", max_pixels=0)
        (tmp_path / "both/x.tar").unlink()
        with pytest.raises(ValueError, match="label is 'name', but the labels of a folder of images are"):
            open_dataset(tmp_path / "both", label="name")


def triple(key, **record):
    """Members of one sample: image, json, class, mask."""
    mask = Image.fromarray(np.full((16, 24), 3, np.uint8))
    return [
        (f"{key}.jpg", JPEG),
        (f"{key}.json", json.dumps(record).encode()),
        (f"{key}.cls", b"7\n"),
        (f"{key}.mask.png", encoded(mask)),
    ]


class TestTars:
    def test_members_of_a_sample_are_put_together(self, tmp_path):
        record = {"captions": ["one", " two ", "", "one"], "n": 5}
        dataset = open_dataset(tar(tmp_path / "x.tar", [*triple("d.r/k", **record), ("d.r/k.txt", b"zero\n")]))
        assert isinstance(dataset, Dataset) and len(dataset) == 1
        sample = dataset.read(0)
        assert (sample.key, sample.path, sample.label) == ("d.r/k", "x.tar/d.r/k.jpg", "7")
        assert sample.captions == ("zero", "one", "two") and sample.extra == record
        assert np.asarray(sample.mask).tolist() == [[3] * 24] * 16
        assert np.asarray(sample.image).tolist() == pixels(JPEG)

    def test_keys_and_bytes_are_webdatasets_own(self, tmp_path):
        members = []
        for i, key in enumerate(("a/1.2/x", "b", "c.UPPER", "__meta__/y", "nodot/", "x y\nz", "ü")):
            name = {"c.UPPER": "c.JPG", "nodot/": "nodot"}.get(key, f"{key}.png")
            members.append((name, encoded(photo(i), "JPEG" if name == "c.JPG" else "PNG")))
        path = tar(tmp_path / "x.tar", members)
        theirs = [s["__key__"] for s in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)]
        dataset = open_dataset(path)
        assert keys(dataset) == theirs == ["a/1.2/x", "b", "c", "x y\nz", "ü"]
        assert bad(dataset) == []

    def test_agrees_with_webdataset_on_real_shards(self):
        shard = SHARED / "coco_mini/coco_mini-000.tar"
        dataset = open_dataset(shard)
        theirs = webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil")
        for i, expected in zip(range(60), theirs, strict=False):
            sample = dataset.read(i)
            assert sample.key == expected["__key__"] and dict(sample.extra) == expected["json"]
            assert sample.captions == tuple(dict.fromkeys(c.strip() for c in expected["json"]["captions"]))
            np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(expected["jpg"]))
            assert (sample.mask is None) == ("mask.png" not in expected)
        assert len(dataset) == 491

    def test_real_captions_and_braces(self):
        dataset = open_dataset(str(SHARED / "flickr8k/flickr8k-train-{000..002}.tar"))
        assert len(dataset) == 6091 and len(dataset.read(6090).captions) == 5
        assert dataset.identity()["name"] == "flickr8k-train-{000..002}.tar"
        assert open_dataset(SHARED / "tuxpaint_stamps").classes()[:2] == ("animals", "clothes")
        assert open_dataset(SHARED / "imagenet_sample", label="name").read(1).label == "goldfish"

    def test_braces_and_wildcards_and_a_folder_are_the_same_shards(self, tmp_path):
        for n in (2, 0, 1):
            tar(tmp_path / f"x-{n:03}.tar", [(f"{n}.png", PNG)])
        for pattern in ("", "x-{000..002}.tar", "x-*.tar", "x-{000,001,002}.tar"):
            assert keys(open_dataset(tmp_path / pattern)) == ["0", "1", "2"]
        assert keys(open_dataset(tmp_path / "x-{002,000}.tar")) == ["2", "0"]
        with pytest.raises(FileNotFoundError, match=r"there is no .*x-003.tar"):
            open_dataset(tmp_path / "x-{000..003}.tar")

    def test_scattered_members_meet_and_repeated_keys_are_numbered(self, tmp_path):
        tar(
            tmp_path / "a.tar",
            [("k.jpg", JPEG), ("l.png", PNG), ("k.txt", b"first"), ("k.jpg", JPEG), ("k.txt", b"second")],
        )
        tar(tmp_path / "b.tar", [("k.jpg", JPEG), ("k#2.png", PNG)])
        samples = good(open_dataset(tmp_path))
        assert [s.key for s in samples] == ["k", "l", "k#3", "k#4", "k#2"]
        assert [s.captions for s in samples[:3]] == [("first",), (), ("second",)]

    def test_bad_members_name_the_part_that_is_bad(self, tmp_path):
        dataset = open_dataset(
            tar(
                tmp_path / "x.tar",
                [
                    *[("1.jpg", JPEG), ("1.json", b"{broken")],
                    *[("2.jpg", JPEG), ("2.json", b"[1]")],
                    *[("3.jpg", JPEG), ("3.mask.png", b"")],
                    *[("4.txt", b"only words"), ("4.json", b"{}")],
                    *[("5.left.png", PNG), ("5.right.png", PNG)],
                    *[("6.photo.png", PNG), ("6.mask.png", PNG)],
                    *[("7.jpg", JPEG), ("7.json", b"[" * 100_000)],
                ],
            )
        )
        assert [(b.key, b.reason) for b in bad(dataset)] == [
            ("1", "its json cannot be parsed"),
            ("2", "its json is a list, not an object with fields"),
            ("3", "its mask.png is an empty file"),
            ("4", "has no image under one key: its members are txt, json"),
            ("5", "has 2 images under one key: its members are left.png, right.png"),
            ("7", "its json cannot be parsed"),
        ]
        assert [s.key for s in good(dataset)] == ["6"]

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.81, 0.95])
    def test_a_shard_cut_off_gives_what_is_whole(self, tmp_path, share):
        names = [f"{i:02}" for i in range(20)]
        whole = tar(tmp_path / "whole.tar", [(f"{n}.png", encoded(photo(i, (60, 40)))) for i, n in enumerate(names)])
        content = whole.read_bytes()
        with tarfile.open(whole) as archive:
            ends = [m.offset_data + m.size for m in archive.getmembers()]
        cut = int(ends[-1] * share)
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        dataset = open_dataset(tmp_path / "cut.tar")
        assert [s.key for s in good(dataset)] == names[: sum(end <= cut for end in ends)]
        assert len(bad(dataset)) == 1 and "cut.tar" in bad(dataset)[0].reason

    def test_a_cut_between_members_is_not_taken_for_the_end(self, tmp_path):
        dataset = open_dataset(tar(tmp_path / "x.tar", [("1.png", PNG), ("2.png", PNG)], end=False))
        assert [s.key for s in good(dataset)] == ["1", "2"]
        assert [b.reason for b in bad(dataset)] == ["x.tar has no end mark: it was cut off, or not written to the end"]

    def test_a_damaged_header_costs_one_sample_not_the_rest(self, tmp_path):
        path = tar(tmp_path / "x.tar", [(f"{i}.png", PNG) for i in range(5)])
        with tarfile.open(path) as archive:
            start = archive.getmembers()[2].offset
        content = bytearray(path.read_bytes())
        content[start + 100 : start + 140] = b"\xff" * 40
        path.write_bytes(content)
        dataset = open_dataset(path)
        assert [s.key for s in good(dataset)] == ["0", "1", "3", "4"]
        assert bad(dataset) == [
            Bad(f"x.tar@{start}", "x.tar", f"x.tar is damaged at byte {start}: the next readable file follows")
        ]

    def test_a_damaged_first_header_and_a_damaged_last_one(self, tmp_path):
        path = tar(tmp_path / "x.tar", [(f"{i}.png", PNG) for i in range(3)])
        with tarfile.open(path) as archive:
            starts = [m.offset for m in archive.getmembers()]
        content = bytearray(path.read_bytes())
        for start in (starts[0], starts[2]):
            content[start : start + 20] = b"\xff" * 20
        path.write_bytes(content)
        dataset = open_dataset(path)
        assert [s.key for s in good(dataset)] == ["1"] and len(bad(dataset)) == 2

    @pytest.mark.parametrize("seed", range(30))
    def test_random_damage_never_raises_and_never_hides(self, tmp_path, seed):
        rng = np.random.default_rng(seed)
        path = tar(tmp_path / "x.tar", [m for i in range(6) for m in triple(f"s{i}", caption="c")])
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, len(content) - 10240, 40):
            content[place] = rng.integers(256)
        path.write_bytes(content[: len(content) - int(rng.integers(0, 2)) * int(rng.integers(0, 20000))])
        try:
            dataset = open_dataset(path)
        except ValueError:
            return
        found = [dataset.read(i) for i in range(len(dataset))]
        assert all(isinstance(f, Sample) or f.reason for f in found) and len({f.key for f in found}) == len(found)

    def test_joined_tars_are_read_to_the_end(self, tmp_path):
        one, two = tar(tmp_path / "1.tar", [("1.png", PNG)]), tar(tmp_path / "2.tar", [("2.png", PNG)])
        (tmp_path / "joined").mkdir()
        write(tmp_path / "joined/x.tar", one.read_bytes() + two.read_bytes())
        assert keys(open_dataset(tmp_path / "joined")) == ["1", "2"]

    def test_names_that_would_leave_the_folder_are_only_names(self, tmp_path):
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.addfile(link)
            info = tarfile.TarInfo("../../up.png")
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
        assert keys(open_dataset(tmp_path / "x.tar")) == ["../../up"]

    def test_numbers_are_sorted_as_numbers(self, tmp_path):
        members = [m for i in (10, 9, 2) for m in ((f"{i}.png", PNG), (f"{i}.cls", str(i).encode()))]
        assert open_dataset(tar(tmp_path / "x.tar", members)).classes() == ("2", "9", "10")

    def test_mistakes_are_sentences(self, tmp_path):
        write(tmp_path / "text.tar", b"this is not a tar at all" * 100)
        write(tmp_path / "zero.tar", b"")
        write(tmp_path / "none.tar", bytes(10240))
        with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("1.png"))
        for name, words in [
            ("text.tar", "text.tar is not a tar: give webdataset shards"),
            ("zero.tar", "zero.tar is an empty file"),
            ("none.tar", "none.tar hold no samples"),
            ("packed.tar", r"packed.tar is compressed \(gzip\): unpack it"),
        ]:
            with pytest.raises(ValueError, match=words):
                open_dataset(tmp_path / name)
        tar(tmp_path / "x.tar", [("1.png", PNG), ("1.json", b'{"species": "cat"}')])
        with pytest.raises(ValueError, match=r"the json of x\.tar has no field 'spices'"):
            open_dataset(tmp_path / "x.tar", label="spices")


ROWS = [
    {"image": "a/1.png", "caption": "one", "label": "cat"},
    {"image": "../out.png", "caption": "two", "label": "dog"},
    {"image": "a/missing.png", "caption": "three", "label": "cat"},
]


def listed(folder, suffix, rows):
    path = folder / f"list{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    return path


class TestPairs:
    @pytest.fixture
    def folder(self, tmp_path):
        write(tmp_path / "data/a/1.png", PNG)
        write(tmp_path / "out.png", PNG)
        return tmp_path / "data"

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
    def test_the_three_formats_say_the_same(self, folder, suffix):
        dataset = open_dataset(listed(folder, suffix, [*ROWS, {"image": str(folder / "a/1.png"), "caption": "four"}]))
        assert [(s.key, s.path, s.captions, s.label) for s in good(dataset)] == [
            ("a/1", "a/1.png", ("one",), "cat"),
            ("../out", "../out.png", ("two",), "dog"),
        ]
        assert [b.reason for b in bad(dataset)] == [
            "cannot be read: No such file or directory",
            "is an absolute path: make it relative to the list's folder",
        ]
        assert dataset.classes() == ("cat", "dog") and good(dataset)[0].extra["caption"] == "one"
        assert list(dataset.keys) == keys(dataset)

    def test_other_column_names_keys_and_lists_of_captions(self, folder):
        rows = [
            {"file": "a/1.png", "captions": ["x", "y"], "key": 7, "species": "cat"},
            {"file_name": "a/1.png", "text": "z", "key": "7"},
        ]
        samples = good(open_dataset(listed(folder, ".jsonl", rows), label="species"))
        assert [(s.key, s.captions, s.label) for s in samples] == [("7", ("x", "y"), "cat"), ("7#2", ("z",), None)]

    def test_captions_alone_are_a_dataset(self, folder):
        dataset = open_dataset(listed(folder, ".jsonl", [{"text": "one"}, {"text": ""}, {"text": "two\nlines"}]))
        assert [(s.key, s.captions, s.image) for s in good(dataset)] == [
            ("row-00000001", ("one",), None),
            ("row-00000003", ("two\nlines",), None),
        ]
        assert bad(dataset) == [Bad("row-00000002", "list.jsonl, row 2", "has no caption")]

    def test_bad_rows_are_named_and_the_rest_is_read(self, folder):
        path = folder / "list.jsonl"
        lines = [
            b'{"image": "a/1.png"}',
            b"{broken",
            b"[1]",
            b'{"image": 5}',
            b'{"caption": "x"}',
            b"",
            b'{"image": "\\u0000"}',
        ]
        path.write_bytes(b"\n".join([*lines, b'{"image": "a"}', b'{"image": "\\ud800.png", "caption": "\\ud800"}']))
        dataset = open_dataset(path)
        assert [b.reason for b in bad(dataset)] == [
            "is no readable JSON",
            "is a list, not a JSON object",
            "has for an image int, not the path of a file",
            "has no image",
            "is no path a file can have",
            "cannot be read: Is a directory",
            "is no path a file can have",
        ]
        assert [s.key for s in good(dataset)] == ["a/1"]
        json.dumps([b.__dict__ for b in bad(dataset)], ensure_ascii=False).encode()

    def test_file_names_that_are_no_unicode_are_found(self, folder):
        name = b"caf\xe9.png"
        write(Path(os.fsdecode(os.path.join(os.fsencode(folder), name))), PNG)
        (folder / "list.csv").write_bytes(b"image,caption\n" + name + b",coffee\n")
        sample = open_dataset(folder / "list.csv").read(0)
        assert (sample.key, sample.captions) == ("caf\\udce9", ("coffee",)) and sample.image.size == (24, 16)

    def test_identity_sees_captions_and_files(self, folder):
        first = open_dataset(listed(folder, ".jsonl", ROWS)).identity()
        assert open_dataset(listed(folder, ".jsonl", ROWS)).identity() == first
        other = open_dataset(listed(folder, ".jsonl", [{**ROWS[0], "caption": "else"}, *ROWS[1:]])).identity()
        write(folder / "a/1.png", PNG + b"\0")
        third = open_dataset(listed(folder, ".jsonl", ROWS)).identity()
        assert len({identity["digest"] for identity in (first, other, third)}) == 3

    def test_mistakes_are_sentences(self, folder):
        write(folder / "broken.parquet", b"PAR1 nonsense")
        write(folder / "empty.jsonl", b"\n")
        write(folder / "nul.csv", b"image\n\x00" + b"a" * 200_000)
        write(folder / "urls.csv", b"url,alt\nhttp://x,y\n")
        for name, words in [
            ("broken.parquet", "broken.parquet is no readable .parquet list: "),
            ("empty.jsonl", "empty.jsonl has no rows"),
            ("nul.csv", "nul.csv is no readable .csv list: "),
            ("urls.csv", "has neither images .* nor captions: its columns are url, alt"),
        ]:
            with pytest.raises(ValueError, match=words):
                open_dataset(folder / name)
        with pytest.raises(ValueError, match="has no column 'species' for the label: its columns are image, caption"):
            open_dataset(listed(folder, ".csv", ROWS), label="species")


class TestText:
    def test_captions_of_any_shape(self):
        assert find_captions(None, " a ", {"captions": ["b", "", "a"], "text": "c"}, ["d", {"caption": "e"}]) == (
            *("a", "b", "c", "d", "e"),
        )
        assert find_captions({"caption": 5}, {"objects": ["no"]}) == ()

    def test_label_of_a_record(self):
        assert find_label({"class": 0}, None) == "0" and find_label({"label": "", "category": "x"}, None) == "x"
        assert find_label({"label": "a", "name": "b"}, "name") == "b" and find_label({"label": ["a"]}, None) is None

    def test_classes_sort_by_name_unless_all_are_numbers(self):
        assert sorted_classes(["10", "9", None, "10"]) == ("9", "10")
        assert sorted_classes(["b", "10", "9"]) == ("10", "9", "b")

    @given(st.lists(st.sampled_from(["a", "a#2", "a#3", "b", "a#2#2"])))
    def test_distinct_is_distinct_and_leaves_first_ones_alone(self, names):
        result = distinct(names)
        assert len(set(result)) == len(names) == len(result)
        for i, name in enumerate(names):
            assert (result[i] == name) == (name not in names[:i])

    @given(st.text(st.characters()))
    def test_printable_can_always_be_encoded_and_changes_nothing_that_can(self, text):
        assert printable(text).encode().decode() == printable(text)
        assert (printable(text) == text) == (not any("\ud800" <= letter <= "\udfff" for letter in text))
