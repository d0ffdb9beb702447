"""Titles of whatever Unicode holds: encoded, decoded, written freely and grounded they come back to
their item; no control token is among their tokens, and the trie's path is the label."""

import random

import pytest

from llmrec.data.catalog import NUMBER_SUFFIX, build_catalog
from llmrec.decoding.grounding import Grounder
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

ALPHABETS = (
    range(0x20, 0x7F),
    range(0xA0, 0x250),
    range(0x300, 0x370),  # marks that combine
    range(0x370, 0x600),
    range(0x600, 0x700),  # written from the right
    range(0x900, 0xE80),
    range(0x3040, 0x3100),
    range(0x4E00, 0x5000),
    range(0xAC00, 0xAD00),
    range(0x1F300, 0x1F650),
    (0x200B, 0x200D, 0x200E, 0x202E, 0xFEFF, 0xFFFD, 0xE000, 0x0, 0x7, 0x1B, 0xA, 0x9, 0x2028),
)
PIECES = ("<|im_end|>", "<|im_start|>", "{{ 7*7 }}", "{% raw %}", "</s>", "\n", " (1999)", "</td>")


def title(rng):
    """A text of one or two scripts, with what is no letter, and sometimes what means something."""
    some = [rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(1, 24))]
    text = "".join(map(chr, some))
    return text + rng.choice(PIECES) if rng.random() < 0.2 else text


def checked(tokenizer, count, seed):
    """How many of so many titles collide with another's cleaned text, each with a stated rule."""
    rng = random.Random(seed)
    raw = [title(rng) for _ in range(count)]
    catalog = build_catalog([f"i{n}" for n in range(count)], raw)
    assert len(set(catalog.titles)) == count
    encoder = PromptEncoder(PromptTemplate.from_name("next_item/movie"), tokenizer, catalog.titles)
    control = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    grounder, seen = Grounder(catalog), {}
    for position, (text, ids) in enumerate(zip(catalog.titles, encoder.completions, strict=True)):
        assert not control & set(ids.tolist())
        assert ids.tolist().count(tokenizer.eos_token_id) == 1  # at its end
        assert encoder.trie.items_at(int(encoder.trie.walk(ids)[-1])).tolist() == [position]
        written = encoder.written(ids[:-1])
        assert written == text
        [found] = grounder.ground([{"title": written}])
        assert found.position == position, (raw[position], text, found)
        seen.setdefault(text, []).append(position)
    return catalog.title_rules.count(NUMBER_SUFFIX)


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(50_000, marks=pytest.mark.long)], ids=["2000", "50000"]
)
def test_titles_of_any_unicode_come_back_to_their_item(tokenizer, count):
    renamed = checked(tokenizer, count, count)
    assert renamed < count / 2  # counted, and each by a rule that the catalog holds
    print(f"\n{count} titles, {renamed} told apart by a rule, 0 lost")
