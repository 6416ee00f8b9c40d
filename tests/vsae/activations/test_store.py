import json

import numpy as np
import pytest
import torch
from fake_model import KINDS, Chunk, Tokens, chunk

from vsae.activations import ActivationStore, Select, StreamSource, fingerprint
from vsae.activations.select import shares_of

ALL = torch.cat([chunk(batch).activations["blocks.1"].values.reshape(-1, 16) for batch in range(10)])


def expected_rows(site, select):
    mask = torch.from_numpy(select.kind_mask(KINDS))[site.read(0, site.n_rows).kinds.long()]
    return ALL[mask & torch.from_numpy(select.sample_mask(site.keys)).repeat_interleave(17)]


@pytest.mark.parametrize(
    "select", [Select(), Select(("patch",)), Select(("cls",)), Select(part=(0, 0.6)), Select(("cls",), (0.6, 1))]
)
@pytest.mark.parametrize("batch_size", [1, 33, 100, 5000])
def test_sequential_gives_the_selected_rows_in_order(site, select, batch_size):
    batches = list(site.sequential(batch_size, select))
    assert torch.equal(torch.cat([batch.values for batch in batches]), expected_rows(site, select))
    assert all(len(batch.values) == batch_size for batch in batches[:-1])
    assert 0 < len(batches[-1].values) <= batch_size


def padded_chunks(start):
    """Two samples a batch, of 5 - batch % 3 and 5 tokens, padded on the left; a token's value is its place in its sample, padding's -1."""
    for batch in range(start, 4):
        values, kinds = torch.full((2, 5, 3), -1.0), torch.full((2, 5), KINDS.index("pad"), dtype=torch.uint8)
        for row, n in enumerate((5 - batch % 3, 5)):
            values[row, 5 - n :] = torch.arange(float(n))[:, None]
            kinds[row, 5 - n :] = torch.tensor([5, 3, 4, 4, 4])[:n]  # a mark, an image token, text
        samples = [{"key": f"{batch}-{row}", "path": "", "caption": None, "label": None} for row in range(2)]
        yield Chunk(batch, samples, [], {"text": Tokens(values, kinds, None)})


@pytest.mark.parametrize("keep_pad", [False, True])
@pytest.mark.parametrize(
    ("select", "places"),
    [
        (Select(), [0, 1, 2, 3, 4]),
        (Select(skip=1), [1, 2, 3, 4]),
        (Select(("text",), skip=3), [3, 4]),
        (Select(("text",), skip=1), [2, 3, 4]),
        (Select(("special", "text"), (0, 0.7), 2), [2, 3, 4]),
    ],
)
def test_the_first_tokens_of_each_sample_are_left_out_whatever_their_kind_and_padding(write, keep_pad, select, places):
    site = write(make_chunks=padded_chunks, rows_per_shard=7, keep_pad=keep_pad).site()
    asked = select.sample_mask(site.keys)
    lengths = [n for batch in range(4) for n in (5 - batch % 3, 5)]
    want = [float(at) for n, has in zip(lengths, asked, strict=True) for at in places if has and at < n]
    got = torch.cat([batch.values[:, 0] for batch in site.sequential(6, select)])
    assert got.tolist() == want and len(want) > 0
    about = {"fingerprint": {}, "kind_names": KINDS, "dtype": "float32"}
    streamed = next(StreamSource(padded_chunks, "text", select, **about).batches(len(want), 0, epochs=1)).values[:, 0]
    assert sorted(streamed.tolist()) == sorted(want)


@pytest.mark.parametrize("keep_pad", [False, True])
def test_a_position_is_a_place_in_the_sample_whatever_padding_is_before_it(write, keep_pad):
    """Otherwise what is known of a token by its position (segments, labels, an atom's origin) would depend on the batch its sample was in."""
    site = write(make_chunks=padded_chunks, rows_per_shard=7, keep_pad=keep_pad).site()
    every = site.gather(np.arange(site.n_rows))
    token = every.kinds != KINDS.index("pad")
    assert torch.equal(every.positions[token].float(), every.values[token, 0])
    lengths = [5 - batch % 3 for batch in range(4)]
    pads = [place for n in lengths for place in range(n - 5, 0)] if keep_pad else []
    assert every.positions[~token].tolist() == pads
    about = {"fingerprint": {}, "kind_names": KINDS, "dtype": "float32"}
    streamed = next(StreamSource(padded_chunks, "text", **about).batches(site.n_rows - len(pads), 0, epochs=1))
    assert torch.equal(streamed.positions.float(), streamed.values[:, 0])


def test_what_is_left_out_is_in_the_description_where_anything_is():
    assert Select(skip=2).describe() == {"kinds": None, "part": [0.0, 1.0], "skip": 2}
    assert "skip" not in Select().describe()  # so that fingerprints from before there was a choice stay as they are
    with pytest.raises(ValueError, match="skip is -1, but it counts tokens"):
        Select(skip=-1)


def test_read_takes_rows_across_shards(site):
    assert torch.equal(site.read(95, 205).values, ALL[95:205])
    assert len(site.read(7, 7).values) == 0
    with pytest.raises(ValueError, match=r"rows 5 to 9999 do not exist: blocks.1 has rows 0 to 1292"):
        site.read(5, 9999)


def test_parts_are_disjoint_whole_and_by_key():
    keys = [f"photo-{i}" for i in range(20000)]
    train, val = Select(part=(0, 0.95)).sample_mask(keys), Select(part=(0.95, 1)).sample_mask(keys)
    assert (train ^ val).all()
    assert abs(train.mean() - 0.95) < 0.006
    assert (Select(part=(0, 0.95)).sample_mask(keys[::-1]) == train[::-1]).all()
    assert (
        shares_of(["abc"])[0] == int("ba7816bf8f01cfea", 16) // 2**11 / 2**53
    )  # sha256("abc") begins with ba7816bf 8f01cfea


def test_stored_stats_need_no_rows(site):
    torch.testing.assert_close(site.stats().mean, ALL.double().mean(0), rtol=1e-12, atol=1e-14)


def test_site_by_name_and_alone(write):
    store = write()
    assert store.site("blocks.1:output").name == "blocks.1"
    with pytest.raises(ValueError, match=r"has no site 'blocks.2': choose from blocks.1, text.2:input"):
        store.site("blocks.2")
    with pytest.raises(ValueError, match=r"holds several sites: choose from blocks.1, text.2:input"):
        store.site()


def test_damage_is_found_and_named(write):
    path = write().path
    part = path / "blocks.1" / "part-00003.safetensors"
    original = part.read_bytes()
    part.write_bytes(original[:-1])
    with pytest.raises(
        ValueError, match=r"part-00003.safetensors has \d+ bytes where the manifest says \d+: restore it"
    ):
        ActivationStore.open(path)
    part.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    ActivationStore.open(path)
    with pytest.raises(ValueError, match=r"part-00003.safetensors was altered"):
        ActivationStore.open(path, verify=True)
    part.unlink()
    with pytest.raises(ValueError, match=r"part-00003.safetensors is missing"):
        ActivationStore.open(path)
    part.write_bytes(original)
    ActivationStore.open(path, verify=True)
    (path / "samples.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"samples.parquet has 0 bytes"):
        ActivationStore.open(path)


def test_stray_files_are_named_and_hidden_ones_passed_over(write):
    path = write().path
    (path / ".DS_Store").touch()
    ActivationStore.open(path)
    (path / "blocks.1" / "part-00099.safetensors").touch()
    with pytest.raises(
        ValueError, match=r"1 stray file\(s\) that its manifest does not know, such as blocks.1/part-00099.safetensors"
    ):
        ActivationStore.open(path)


def test_what_is_no_store_is_said(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"is not an activation store: it has no manifest.json"):
        ActivationStore.open(tmp_path)
    path = write().path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(
        ValueError, match=r"written by a newer vsae .store schema 99; this one reads up to 1.: update vsae"
    ):
        ActivationStore.open(path)
    (path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="is not the manifest of an activation store"):
        ActivationStore.open(path)


@pytest.mark.parametrize("part", [(0.5, 0.5), (-0.1, 1), (0, 1.1), (0.9, 0.1), (float("nan"), 1)])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(ValueError, match="a part runs from low to high within 0 to 1"):
        Select(part=part)


def test_unknown_and_no_kinds_are_refused(site):
    with pytest.raises(ValueError, match="token kind 'patches' does not exist: choose from cls, register, patch"):
        list(site.sequential(10, Select(("patches",))))
    with pytest.raises(ValueError, match="kinds is empty"):
        Select(())


def test_fingerprints_fit_when_model_site_side_and_preprocessing_do(site):
    theirs = site.fingerprint
    fingerprint.check(theirs, theirs)
    fingerprint.check(theirs | {"data": {"other": 1}, "store": "x"}, theirs)
    fingerprint.check(theirs | {"preprocessing": {"resize": 8, "library": "Compose(...)"}}, theirs)
    for change, field in (
        ({"model": {"name": "fake", "weights": "other"}}, "model weights"),
        ({"site": "blocks.2"}, "site"),
        ({"side": "input"}, "side"),
        ({"preprocessing": {"resize": 9}}, "preprocessing"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"do not belong together: {field} differ.*trained on .*the store holds fake \(weights abc\), blocks.1",
        ):
            fingerprint.check(theirs | change, theirs)
