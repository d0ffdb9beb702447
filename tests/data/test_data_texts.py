"""Texts in flat arrays are the texts they were, and are found as a dictionary finds them."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data import catalog as catalogs
from llmrec.data import texts as module
from llmrec.data.catalog import Catalog, build_catalog
from llmrec.data.texts import Texts, positions_of
from llmrec.decoding.grounding import Grounder

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(any_text | st.sampled_from(["a", "b", ""]), max_size=12), st.integers(1, 5))
def test_flat_texts_are_those_they_were_made_of(said, block):
    before, module.BLOCK = module.BLOCK, block
    try:
        texts = Texts.of_strings(said)
        assert list(texts) == said
        assert texts == said == texts
        assert texts != [*said, "more"]
        assert texts[1:4] == tuple(said[1:4])
        assert [texts[i] for i in range(-len(said), len(said))] == said + said
        assert [said[i] for i in texts.order] == sorted(said)
        assert pickle.loads(pickle.dumps(texts)) == said  # noqa: S301
        assert (texts.digest == Texts.of_strings(said[::-1]).digest) == (said == said[::-1])
        with pytest.raises(IndexError):
            texts[len(said)]
        for single in (False, True):
            found, expected = positions_of(texts, single), positions_of(said, single)
            assert dict(found) == expected
            assert len(found) == len(expected)
            assert {text: found.get(text, -1) for text in [*said, "zz", ""]} == {
                text: expected.get(text, -1) for text in [*said, "zz", ""]
            }
    finally:
        module.BLOCK = before


def test_a_column_of_several_pieces_is_one():
    column = pa.chunked_array([["x", "yy"], ["z"], ["", "w"]]).slice(1, 3)
    assert list(Texts.of(column)) == ["yy", "z", ""]


@pytest.fixture
def written(tmp_path):
    raw = ["Matrix, The (1999)", "Heat", "Heat", "Amélie", "", "12 Monkeys"]
    catalog = build_catalog(["7", "5", "x", "y", "3", "9"], raw, genres=["a", "", "b", "", "", ""])
    catalog.write(tmp_path / "items.parquet")
    return catalog, tmp_path / "items.parquet"


def test_a_large_catalog_is_mapped_and_is_the_same(written, monkeypatch):
    catalog, path = written
    small = Catalog.read(path)
    assert not path.with_suffix("").exists()
    monkeypatch.setattr(catalogs, "LARGE", len(catalog))
    first, large = Catalog.read(path), Catalog.read(path)
    assert first == large == small == catalog
    for column in (large.item_ids, large.titles, large.raw_titles, large.title_rules, large.genres):
        assert isinstance(column.content.base, np.memmap)
    assert dict(large.position_of) == small.position_of
    assert large.titles_at([2, 0]) == small.titles_at([2, 0])
    asked = ["7", "Heat", "Heat (2)", "The Matrix (1999)", "Matrix, The (1999)", "3.0", "amelie"]
    asked += ["Untitled item 3", "Heatt", "nothing like it", {"id": "9"}, {"title": "9"}]
    assert Grounder(large).ground(asked) == Grounder(small).ground(asked)
    assert [Grounder(large).knows(one) for one in asked] == [
        Grounder(small).knows(one) for one in asked
    ]


def test_a_mapped_catalog_is_made_again_when_its_file_changed_or_it_is_damaged(
    written, monkeypatch
):
    catalog, path = written
    monkeypatch.setattr(catalogs, "LARGE", 1)
    Catalog.read(path)
    torn = path.with_suffix("") / "title-content.npy"
    torn.write_bytes(torn.read_bytes()[:-2])
    assert Catalog.read(path) == catalog
    other = build_catalog(["1", "2"], ["One", "Two"])
    other.write(path)
    assert Catalog.read(path) == other
    assert Catalog.read(path).genres == ()
