from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe.coco import CocoIndex
from dpipe.errors import InputError
from dpipe.index import coco_careful, coco_fast
from dpipe.index.coco_cache import arrays_of
from dpipe.index.coco_columns import index_of

PATH = Path("instances.json")

# Written as they are into the text of a file, so that they need not be JSON.
VALUES = [
    "null",
    "true",
    "0",
    "1",
    "-1",
    "1.0",
    "2",
    '"a"',
    '""',
    "[]",
    "{}",
    "[[]]",
    "[[1,2,3,4,5,6]]",
    "[[[1,2,3,4,5,6]]]",
    "[1,2]",
    "[[],5]",
    "[[1,2,9,4,5,6],[]]",
    "1e400",
    "-0.0",
    "1e18",
    "1.1e18",
    "1e-400",
    "99999999999999999999",
    "9223372036854775808",
    "NaN",
    "01",
    '"\\ud800"',
    '"\\u00e9"',
    '"[1,2]"',
    "[[1],[2,3,4]]",
    '{"size":[60,40],"counts":[0,2400]}',
    '{"size":[60,40],"counts":"PPPb2"}',
    '{"counts":[1e999]}',
    '{"size":[60,40],"counts":[1]}',
    "[1,2,10,20]",
    "[1,2,10,20,3]",
    "[1,2,-1,20]",
    "[true,1,2,3]",
    "[[1,2,3,4,5,true]]",
    "[[1,2,3,4,5,null]]",
    '[[1,2,3,4,5,"x"]]',
    "[[1,2,[3],4,5,6]]",
    '[[1,2,{"a":1},4,5,6]]',
    "[[1,2,3,4,5,1.5e0]]",
    "[[1,2,3,4,5]]",
    "[[0,0,9,0,9,9],[1,1,1,1,1,1]]",
    '"],["',
]
SPACED = "[ [1 , 2,3,4,\n5,\t6] ,\r[0, 0, 9, 0, 9, 9] ]"
NESTED = "[" * 1100 + "]" * 1100
KEYS = [
    "id",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "ignore",
    "difficult",
    "segmentation",
    "name",
    "width",
    "height",
    "file_name",
    "other",
]


def document() -> dict[str, Any]:
    return {
        "info": {"contributor": "größe"},
        "images": [
            {"id": 3, "file_name": "c.jpg", "height": 40, "width": 60},
            {"id": 1, "file_name": "a.jpg", "height": 60, "width": 40},
        ],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 150.5, "segmentation": []},
            {
                "id": 9,
                "image_id": 3,
                "category_id": 2,
                "bbox": [0.5, 0, 4, 4],
                "segmentation": [[0.5, 0, 4.5, 0, 4.5, 4], [1.25, 1, 2, 1, 2, 2, 1, 2]],
            },
            {
                "id": 4,
                "image_id": 1,
                "category_id": 7,
                "bbox": [0, 0, 40, 1],
                "iscrowd": 1,
                "segmentation": {"size": [60, 40], "counts": [10, 20, 2370]},
            },
            {"id": 6, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 9, 0, 9, 9]]},
        ],
        "categories": [{"id": 7, "name": "car"}, {"id": 2, "name": "person"}],
    }


def fast(text: bytes) -> CocoIndex:
    return index_of(PATH, coco_fast.read_columns(text))


def careful(text: bytes) -> CocoIndex:
    return index_of(PATH, coco_careful.read_columns(PATH, text))


def assert_same(one: CocoIndex, other: CocoIndex) -> None:
    assert one.class_names == other.class_names
    assert one.left_out == other.left_out
    arrays = arrays_of(other)
    for name, array in arrays_of(one).items():
        assert array.dtype == arrays[name].dtype, name
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def agree(text: bytes) -> bool:
    """Whether the fast reader took a text; the careful one has to read the same from it then."""
    try:
        index = fast(text)
    except (coco_fast.DeclinedError, InputError):
        return False
    try:
        expected = careful(text)
    except InputError as error:
        # See test_only_what_is_looked_at_may_be_beyond_float64. How deep lists may be that are skipped is Python's
        # choice: from 3.12 on, deeper than those that are read.
        if not any(limit in str(error) for limit in ("infinity", "depth limit")):
            raise
        return False
    assert_same(index, expected)
    return True


@pytest.mark.parametrize("indent", [None, 2])
def test_usual_files_are_taken(indent: int | None) -> None:
    assert agree(json.dumps(document(), indent=indent).encode())
    assert agree(json.dumps(document(), ensure_ascii=False).encode())
    assert agree(json.dumps(document(), separators=(",", ":")).encode())


@pytest.mark.parametrize("value", [*VALUES, SPACED, NESTED])
def test_odd_values_are_declined_or_read_the_same(value: str) -> None:
    for kind, number in (("images", 1), ("annotations", 1), ("annotations", 2), ("categories", 1)):
        for key in KEYS:
            data = document()
            data[kind][number][key] = "@"
            agree(json.dumps(data).replace('"@"', value).encode())


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_damaged_texts_are_declined_or_read_the_same(rng: random.Random) -> None:
    text = bytearray(json.dumps(document(), ensure_ascii=False).encode())
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(text))
        damage = bytes([rng.choice(b'[]{},:"0123456789-+.eE \n\\tf\xff\x00')])
        text[place : place + rng.choice([0, 1, 1, 3])] = rng.choice([damage, b""])
    agree(bytes(text))


def test_only_what_is_looked_at_may_be_beyond_float64() -> None:
    text = json.dumps(document()).replace('"contributor"', '"version": 1e999, "contributor"').encode()
    assert len(fast(text)) == 2
    with pytest.raises(InputError, match="infinity"):
        careful(text)


@pytest.mark.parametrize("text", [b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"'])
def test_texts_that_are_not_unicode_are_declined_wherever_they_are(text: bytes) -> None:
    data = json.dumps(document()).encode()
    with pytest.raises(coco_fast.DeclinedError):
        fast(data.replace(b'"contributor"', text + b': 1, "contributor"'))


def test_characters_between_two_pieces_are_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_fast, "PIECE_BYTES", 3)
    assert agree(json.dumps({**document(), "names": "aü日本ü日本ü"}, ensure_ascii=False).encode())


def test_masks_of_many_pieces_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = document()
    for number in range(300):
        record = dict(data["annotations"][rng.integers(0, 4)], id=100 + number)
        if isinstance(record["segmentation"], list):
            record["segmentation"] = [rng.integers(0, 40, 8).tolist() for _ in range(rng.integers(0, 4))]
        data["annotations"].append(record)
    monkeypatch.setattr(coco_fast, "PIECE_BYTES", 500)
    monkeypatch.setattr(coco_fast, "RECORDS", 7)
    assert agree(json.dumps(data).encode())
    monkeypatch.setattr(coco_fast, "TWO_CORES_FROM_PIECES", 10**9)
    assert agree(json.dumps(data).encode())
    monkeypatch.setattr(coco_fast, "BYTES_A_VERTEX", 1000)  # more than there is room for
    assert agree(json.dumps(data).encode())
