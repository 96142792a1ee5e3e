from __future__ import annotations

import pickle

import pytest

from dpipe.index.texts import Texts

NAMES = ["a.jpg", "", "größe/ß.png", "日本.jpg", "x" * 300]


def test_texts_are_a_sequence() -> None:
    texts = Texts.of(NAMES)
    assert list(texts) == NAMES
    assert [texts[number] for number in range(len(texts))] == NAMES
    assert texts[-2] == NAMES[-2]
    assert texts[1:4] == tuple(NAMES[1:4])
    assert texts[::-2] == tuple(NAMES[::-2])
    assert "日本.jpg" in texts
    assert "jpg" not in texts
    assert texts.index("") == 1
    assert repr(texts) == "Texts(5: 'a.jpg', '', 'größe/ß.png', ...)"


def test_places_beyond_the_ends_are_errors() -> None:
    for place in (5, -6):
        with pytest.raises(IndexError):
            Texts.of(NAMES)[place]


def test_no_texts() -> None:
    assert list(Texts.of([])) == []
    assert len(Texts.of([])) == 0


def test_texts_pickle_small() -> None:
    names = [f"{number:06d}.jpg" for number in range(1000)]
    data = pickle.dumps(Texts.of(names))
    assert list(pickle.loads(data)) == names
    assert len(data) < 19_000
