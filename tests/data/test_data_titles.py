"""Titles: cleaned, unique, and honest about how they came to be."""

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import (
    Catalog,
    build_catalog,
    clean_title,
    duplicate_titles,
    id_order,
    split_year,
)

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)
# Text made of what the rules look for, so that they meet each other.
PIECES = st.lists(
    st.sampled_from(
        [
            ", The",
            ", A",
            ", L'",
            " (",
            ")",
            " (1999)",
            "&amp;",
            "amp;",
            "\u202e",
            "\u200d",
            "\t",
            "é",
            "e\u0301",
            "\ue000",
            "Matrix",
            "-",
            ",",
            " ",
            "x" * 12,
        ]
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Fish Called Wanda, A (1988)", "A Fish Called Wanda (1988)"),
        ("American Werewolf in London, An (1981)", "An American Werewolf in London (1981)"),
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Boot, Das (1981)", "Das Boot (1981)"),
        ("Postino, Il (1994)", "Il Postino (1994)"),
        ("Misérables, Les (1995)", "Les Misérables (1995)"),
        (
            "Lord of the Rings: The Two Towers, The (2002)",
            "The Lord of the Rings: The Two Towers (2002)",
        ),
        (
            "Horseman on the Roof, The (Hussard sur le toit, Le) (1995)",
            "The Horseman on the Roof (Le Hussard sur le toit) (1995)",
        ),
        ("Eighth Day, The (Le Huitième jour ) (1996)", "The Eighth Day (Le Huitième jour) (1996)"),
        ("Paris, Texas (1984)", "Paris, Texas (1984)"),
        ("The End", "The End"),
        ("  a\t b\n\nc  ", "a b c"),
        ("Beyonce\u0301", "Beyoncé"),
        ("evil\u202etxt\u2066", "eviltxt"),
        ("bell\x07 nul\x00 own\ue000 tag\U000e0041 half\ud800", "bell nul own tag half"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
        ("R&amp;B &quot;Hits&quot; &#39;99", 'R&B "Hits" \'99'),
        (
            "Am&eacute;lie &ndash; L&rsquo;&#233;t&#xE9; &hellip; &amp;copy;",
            "Amélie \u2013 L\u2019été \u2026 ©",
        ),
        ("AT&T; &nosuch; R&B &", "AT&T; &nosuch; R&B &"),
        ("\u200b\u200d \ufeff", ""),
        ("", ""),
    ],
)
def test_clean_title(raw: str, clean: str) -> None:
    assert clean_title(raw) == clean


def test_long_titles_end_after_a_word_and_keep_their_year() -> None:
    assert clean_title("one two three four", 12) == "one two"
    assert clean_title("one two three four", 13) == "one two three"
    assert clean_title("one two three four (1999)", 17) == "one two (1999)"
    assert clean_title("abcdefghij", 4) == "abcd"
    assert clean_title("one two, three", 9) == "one two"


@settings(max_examples=400)
@given(st.one_of(ANY_TEXT, PIECES), st.integers(10, 60))
@example("a (b), The", 60)
@example("\u0344\u0958, The", 60)
def test_cleaned_titles_are_clean_whatever_comes(raw: str, limit: int) -> None:
    title = clean_title(raw, limit)
    assert clean_title(title, limit) == title
    assert len(title) <= limit
    assert title == unicodedata.normalize("NFC", title) == " ".join(title.split())
    forbidden = {"Cc", "Co", "Cs", "Cf"}
    assert not [
        c for c in title if unicodedata.category(c) in forbidden and c not in "\u200c\u200d"
    ]
    title.encode("utf-8")


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.one_of(ANY_TEXT, PIECES), st.sampled_from(["", "Sony", "Apple"])), max_size=12
    ),
    st.booleans(),
)
def test_titles_in_a_catalog_are_unique_and_not_empty(
    items: list[tuple[str, str]], year_in_title: bool
) -> None:
    ids = [str(number) for number in range(len(items))]
    raw = [title for title, _ in items]
    catalog = build_catalog(
        ids, raw, [brand for _, brand in items], year_in_title=year_in_title, max_title_chars=40
    )
    assert len(set(catalog.titles)) == len(items)
    assert all(0 < len(title) <= 40 for title in catalog.titles)
    assert catalog.raw_titles == tuple(raw)
    assert catalog == build_catalog(
        ids, raw, [brand for _, brand in items], year_in_title=year_in_title, max_title_chars=40
    )


def test_equal_titles_take_the_brand_and_then_a_number() -> None:
    catalog = build_catalog(
        ["1", "2", "3", "4", "5", "6"],
        ["Cable", "Cable", "Cable", "Mouse", "Mouse", "Mouse (2)"],
        ["Sony", "Apple", "Sony", "", "", ""],
    )
    assert catalog.titles == (
        "Cable (Sony)",
        "Cable (Apple)",
        "Cable (Sony) (2)",
        "Mouse",
        "Mouse (3)",
        "Mouse (2)",
    )
    assert catalog.title_rules == (
        "brand_suffix",
        "brand_suffix",
        "number_suffix",
        "as_given",
        "number_suffix",
        "as_given",
    )
    assert duplicate_titles(catalog) == 4


def test_without_years_a_year_comes_back_only_where_titles_collide() -> None:
    raw = ["Sabrina (1954)", "Sabrina (1995)", "Toy Story (1995)", "Sabrina"]
    catalog = build_catalog(list("abcd"), raw, year_in_title=False)
    assert catalog.titles == ("Sabrina (1954)", "Sabrina (1995)", "Toy Story", "Sabrina")
    assert catalog.title_rules == ("year_suffix", "year_suffix", "cleaned", "as_given")
    assert build_catalog(list("abcd"), raw).titles == tuple(raw)


def test_an_item_without_a_title_is_named_after_its_id() -> None:
    catalog = build_catalog(["B01", "B02"], ["", "\u202e"])
    assert catalog.titles == ("Untitled item B01", "Untitled item B02")
    assert catalog.title_rules == ("untitled", "untitled")


def test_split_year() -> None:
    assert split_year("Toy Story (1995)") == ("Toy Story", 1995)
    assert split_year("(1995)") == ("(1995)", None)
    assert split_year("Apollo (3000)") == ("Apollo (3000)", None)


def test_ids_are_ordered_as_integers_only_where_all_are() -> None:
    ids = np.array(["10", "9", "-1", "09"], dtype=object)
    assert ids[id_order(ids)].tolist() == ["-1", "09", "9", "10"]
    ids = np.array(["10", "9", "B"], dtype=object)
    assert ids[id_order(ids)].tolist() == ["10", "9", "B"]


def test_a_catalog_is_read_as_written(tmp_path) -> None:
    catalog = build_catalog(["1", "2"], ["Mouse", "Mouse"])
    catalog.write(tmp_path / "items.parquet")
    assert Catalog.read(tmp_path / "items.parquet") == catalog
    bare = Catalog(("1",), ("Mouse",), ("Mouse",))
    bare.write(tmp_path / "bare.parquet")
    assert Catalog.read(tmp_path / "bare.parquet") == bare
