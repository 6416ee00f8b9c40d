"""Documents of a text file, by hand and on WikiText."""

from pathlib import Path

import pytest

from modalities.data import Bad, Dataset, Sample, open_dataset

WIKITEXT = Path(__file__).resolve().parents[2] / "../shared/data/text/wikitext2_valid.txt"


def test_documents_are_parted_by_empty_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffOne\nstill one\n\n \n\r\ntwo é\r\n\nthree".encode())
    dataset = open_dataset(tmp_path / "a.txt")
    assert isinstance(dataset, Dataset) and len(dataset) == 3
    assert [dataset.read(i).captions for i in range(3)] == [("One\nstill one",), ("two é",), ("three",)]
    assert list(dataset.keys) == ["line-00000001", "line-00000006", "line-00000008"]
    assert dataset.read(1).path == "a.txt, line 6"


def test_what_is_no_text_is_bad_and_the_rest_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\n\xff\xfe\n\ngood too")
    first, second, third = map(open_dataset(tmp_path / "a.txt").read, range(3))
    assert isinstance(first, Sample) and isinstance(third, Sample)
    assert second == Bad("line-00000003", "a.txt, line 3", "is no UTF-8 text")
    (tmp_path / "b.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"b\.txt holds no text"):
        open_dataset(tmp_path / "b.txt")


def test_identity_is_of_the_content_wherever_it_lies(tmp_path):
    (tmp_path / "x").mkdir()
    for place, text in (
        (tmp_path / "a.txt", "one\n\ntwo"),
        (tmp_path / "x/a.txt", "one\n\ntwo"),
        (tmp_path / "b.txt", "one\n\ntwO"),
    ):
        place.write_text(text)
    a, same, other = (open_dataset(tmp_path / name).identity() for name in ("a.txt", "x/a.txt", "b.txt"))
    assert a == same and a["digest"] != other["digest"] and a["count"] == 2


def test_a_list_of_conversations_is_a_dataset_and_its_words_are_its_identity(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "why ?", "answer": "so"}\n{"messages": [{"role": "user", "content": "hi"}]}\n{"n": 1}\n'
    )
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("so", "no"))
    dataset = open_dataset(tmp_path / "a.jsonl")
    assert dataset.read(0).extra["answer"] == "so" and dataset.read(1).extra["messages"][0]["content"] == "hi"
    assert isinstance(dataset.read(2), Bad)
    assert dataset.identity()["digest"] != open_dataset(tmp_path / "b.jsonl").identity()["digest"]


def test_wikitext_is_read_whole():
    dataset = open_dataset(WIKITEXT)
    text = [dataset.read(index).captions[0] for index in range(len(dataset))]
    assert text[0] == "= Homarus gammarus =" and text[1].startswith("Homarus gammarus , known as")
    assert sum(len(document.split()) for document in text) == len(WIKITEXT.read_text("utf-8").split())
