"""Prompts that show similar users and candidates: each title once, as data, within the budget."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.catalog import clean_title
from llmrec.errors import RecipeError
from llmrec.recipe import shipped
from llmrec.text.encoding import Context, Demonstration, PromptEncoder
from llmrec.text.questions import one_by_one
from llmrec.text.rows import single
from llmrec.text.templates import PromptTemplate

SHIPPED = [name for name in shipped.prompt_names() if name.startswith("similar_users/")]
MOVIE = PromptTemplate(shipped.prompt_text("similar_users/movie"), "similar_users/movie")
PLAIN = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
TITLES = [
    "The Man",
    "The Man II",
    "Dark City",
    "A Star",
    "Last Summer",
    "Love",
    "River: the End",
    "Blue",
    "Red",
    "The World",
    "Night of the Dead",
    "Love, Love, Love, Love",
]


def encoder_for(tokenizer, template=MOVIE, titles=TITLES, **options):
    return PromptEncoder(template, tokenizer, titles, **options)


def demonstration(history, chosen):
    return Demonstration(np.array(history, np.int32), chosen)


def text_of(spans):
    return "".join(span.text for span in spans)


def numbers_of(spans):
    return [span.title for span in spans if span.title is not None]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize("candidates", [0, 4])
def test_a_shipped_template_shows_every_title_once_on_a_line_of_its_own(name, others, candidates):
    template = PromptTemplate(shipped.prompt_text(name), name)
    template.check_context(demonstrations=True, candidates=True, selection=True)
    history = ["Own 1", "Own 2"]
    shown = [([f"Other {i} {j}" for j in range(i + 1)], f"Chosen {i}") for i in range(others)]
    choices = [f"Choice {i}" for i in range(candidates)]
    spans = template.prompt(history, shown, choices)
    titles = [*history, *(t for before, chosen in shown for t in (*before, chosen)), *choices]
    assert sorted(numbers_of(spans)) == list(range(len(titles)))
    for span in spans:
        if span.title is not None:
            assert span.text == titles[span.title]
    lines = text_of(spans).split("\n")
    assert [lines.count(title) for title in titles] == [1] * len(titles)
    assert lines[-1] == ""
    # Users first and the most alike of them first, then the own history, then the candidates.
    others_first = [lines.index(t) for before, chosen in shown for t in (*before, chosen)]
    order = [*others_first, *(lines.index(t) for t in (*history, *choices))]
    assert order == sorted(order)
    assert sum("Similar user" in line for line in lines) == others
    assert any("one of these" in line for line in lines) == (candidates > 0)


@pytest.mark.parametrize("name", SHIPPED)
def test_with_nothing_else_to_show_it_is_the_prompt_of_the_history_alone(name):
    other = name.replace("similar_users", "next_item")
    alone = PromptTemplate(shipped.prompt_text(other), other)
    template = PromptTemplate(shipped.prompt_text(name), name)
    assert template.prompt(["A", "B"]) == alone.prompt(["A", "B"])
    assert template.completion("A") == alone.completion("A")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_question_shows_both_histories_and_nothing_of_one_in_the_other(name):
    template = PromptTemplate(shipped.prompt_text(name), name)
    spans = template.selection(["A", "B"], ["C"])
    assert [(s.text, s.title) for s in spans if s.title is not None] == [
        ("A", 0),
        ("B", 1),
        ("C", 2),
    ]
    assert "1 (not at all)" in text_of(spans)
    assert text_of(spans).endswith("JSON:\n")


def test_a_title_in_any_place_is_never_a_control_token_or_template_code(tokenizer):
    pieces = [
        "The Man",
        "{{ demonstrations }}",
        "{% endblock %}",
        "\n",
        "Similar user 1",
        "é",
        *tokenizer.all_special_tokens,
    ]
    rng = random.Random(3)
    hostile = [clean_title("".join(rng.choices(pieces, k=rng.randint(1, 5)))) for _ in range(60)]
    titles = ["Harmless", *(title or "x" for title in hostile)]
    special = set(tokenizer.all_special_ids)
    for form in ("plain", "chat"):
        encoder = encoder_for(tokenizer, titles=titles, form=form, max_tokens=100_000)

        def controls(at, encoder=encoder):
            shown = (demonstration([at, at], at), demonstration([at], at))
            prompt = encoder.prompt([at], Context(shown, (at, at)))
            trunk, [branch] = one_by_one(encoder, [at], [np.array([at], np.int32)])
            said = tokenizer.decode(prompt.ids)
            assert said.count(titles[at]) >= 8
            ids = np.concatenate([prompt.ids, trunk, branch])
            return Counter(i for i in ids.tolist() if i in special)

        harmless = controls(0)
        assert sum(harmless.values()) == (0 if form == "plain" else 6)
        assert all(controls(at) == harmless for at in range(1, len(titles)))


def shortened(own, others, size_of, room):
    """What is to be shown, title by title in plain lists; None where nothing fits."""
    own, others = list(own), [(list(history), chosen) for history, chosen in others]
    while size_of(own, others) > room:
        most = max([len(own), *(len(history) for history, _ in others)])
        longest = [history for history, _ in others if len(history) == most]
        if most > 1:
            (longest[-1] if longest else own).pop(0)
        elif others:
            others.pop()
        else:
            return None
    return own, others


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_budget_holds_and_leaves_out_by_the_rule(tokenizer, data):
    position = st.integers(0, len(TITLES) - 1)
    own = data.draw(st.lists(position, max_size=6))
    history = st.lists(position, min_size=1, max_size=4)
    others = data.draw(st.lists(st.tuples(history, position), max_size=3))
    candidates = tuple(data.draw(st.lists(position, max_size=3)))
    max_history = data.draw(st.integers(1, 5))
    wide = encoder_for(tokenizer, max_history=99, max_tokens=10**6)
    longest = max(map(len, wide.completions))

    def context_of(users):
        return Context(tuple(demonstration(*user) for user in users), candidates)

    def size_of(shown, users):
        return len(wide.prompt(shown, context_of(users)).ids)

    whole = size_of(own, others)
    max_tokens = data.draw(st.integers(16, whole + longest + 5))
    tight = encoder_for(tokenizer, max_history=max_history, max_tokens=max_tokens)
    expected = shortened(own[-max_history:], others, size_of, max_tokens - longest)
    if expected is None:
        with pytest.raises(RecipeError, match=f"max_tokens = {max_tokens}"):
            tight.prompt(own, context_of(others))
        return
    prompt = tight.prompt(own, context_of(others))
    assert len(prompt.ids) + longest <= max_tokens
    assert prompt.history.tolist() == expected[0]
    assert prompt.dropped == len(own) - len(expected[0])
    shown = [(d.history.tolist(), d.chosen) for d in prompt.demonstrations]
    assert shown == expected[1]
    again = wide.prompt(expected[0], context_of(expected[1]))
    assert prompt.ids.tolist() == again.ids.tolist()
    titles = [
        tokenizer.decode(prompt.ids[a:b])
        for a, b in zip(prompt.title_starts, prompt.title_ends, strict=True)
    ]
    assert titles == [TITLES[i] for i in expected[0]]
    for (before, chosen), (kept, of) in zip(others, shown, strict=False):  # whole, the last first
        assert (before[-len(kept) :], chosen) == (kept, of)
        assert kept


@pytest.mark.parametrize("wrong", [-1, len(TITLES)])
@pytest.mark.parametrize("place", ["history", "demonstration", "chosen", "candidate"])
def test_padding_or_a_position_outside_becomes_no_title(tokenizer, wrong, place):
    at = {"history": 1, "demonstration": 2, "chosen": 3, "candidate": 4} | {place: wrong}
    context = Context((demonstration([0, at["demonstration"]], at["chosen"]),), (at["candidate"],))
    with pytest.raises(ValueError, match=f"{wrong}.*the catalog has 0 to {len(TITLES) - 1}"):
        encoder_for(tokenizer).prompt([5, at["history"]], context)


@pytest.mark.parametrize(
    ("source", "wanted", "said"),
    [
        (PLAIN.source, "demonstrations", r"'prompt' shows the titles \[0\] of two demonstrations"),
        (PLAIN.source, "candidates", r"'prompt' shows the titles \[0\] of two candidates"),
        (PLAIN.source, "selection", "no block 'selection'"),
        (MOVIE.source.replace("{{ person.chosen }}", ""), "demonstrations", "then `chosen`"),
        (
            MOVIE.source.replace("{{ person.chosen }}", "{{ person.chosen }}{{ person.chosen }}"),
            "demonstrations",
            "each once",
        ),
        (MOVIE.source.replace("in candidates", "in candidates[:1]"), "candidates", r"\[0, 1, 2\]"),
        (MOVIE.source.replace("in other", "in history"), "selection", "then `other`"),
        (MOVIE.source.replace("person.chosen", "person.next"), "demonstrations", "next"),
    ],
)
def test_a_template_that_shows_too_little_is_refused(source, wanted, said):
    template = PromptTemplate(source, "mine.jinja")
    asked = dict.fromkeys(("demonstrations", "candidates", "selection"), False)
    template.check()
    template.check_context(**asked)
    with pytest.raises(RecipeError, match=rf"mine\.jinja.*{said}"):
        template.check_context(**asked | {wanted: True})


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_question_is_its_trunk_and_its_branch(tokenizer, form):
    encoder = encoder_for(tokenizer, form=form, max_history=3)
    for own in ([3, 1], [], [7, 6, 5, 4, 3]):
        others = [np.array(h, np.int32) for h in ([2], [4, 0, 8], [1, 2, 3, 4, 5], [2])]
        trunk, branches = one_by_one(encoder, own, others)
        assert len(branches) == len(others)
        for other, branch in zip(others, branches, strict=True):
            spans = MOVIE.selection([TITLES[i] for i in own[-3:]], [TITLES[i] for i in other[-3:]])
            words = text_of(spans)
            if form == "chat":
                words = tokenizer.apply_chat_template(
                    [{"role": "user", "content": words}], tokenize=False, add_generation_prompt=True
                )
            question = np.concatenate([trunk, branch])
            assert tokenizer.decode(question) == words
            # Titles and the words between them are encoded apart, wherever the trunk ends.
            expected, rest = [], words
            for title in [s.text for s in spans if s.title is not None]:
                between, rest = rest.split(title, 1)
                for text, untrusted in ((between, False), (title, True)):
                    expected += tokenizer(
                        text, add_special_tokens=False, split_special_tokens=untrusted
                    )["input_ids"]
            expected += tokenizer(rest, add_special_tokens=False)["input_ids"]
            assert question.tolist() == expected


def test_a_row_learns_the_same_completion_behind_whatever_is_shown(tokenizer):
    encoder = encoder_for(tokenizer)
    context = Context((demonstration([2, 3], 4),), (7, 6, 8))
    plain, shown = single(encoder, [0, 1], 6), single(encoder, [0, 1], 6, context)
    assert shown.segments[0].ids.tolist() == encoder.prompt([0, 1], context).ids.tolist()
    assert len(shown.segments[0].ids) > len(plain.segments[0].ids)
    assert shown.flatten().labels.tolist() == plain.flatten().labels.tolist()


def test_a_question_keeps_to_the_budget_with_the_latest_titles_of_both(tokenizer):
    own, other = list(range(6)), np.arange(6, 12, dtype=np.int32)
    whole = encoder_for(tokenizer, max_history=6)
    trunk, [branch] = one_by_one(whole, own, [other])
    size = len(trunk) + len(branch)
    longest = max(map(len, whole.completions))
    counts = []
    for tokens in range(size + longest, size + longest - 40, -5):
        tight = encoder_for(tokenizer, max_history=6, max_tokens=tokens)
        trunk, [branch] = one_by_one(tight, own, [other])
        assert len(trunk) + len(branch) <= tokens - longest
        text = tokenizer.decode([*trunk, *branch])
        shown = [i for i in own if f"\n{TITLES[i]}\n" in text]
        assert shown == own[-len(shown) :]
        assert [i for i in other if f"\n{TITLES[i]}\n" in text] == list(other[-len(shown) :])
        counts.append(len(shown))
    assert counts[0] == 6
    assert counts[-1] < 6
    with pytest.raises(RecipeError, match="with one title of each"):
        one_by_one(encoder_for(tokenizer, max_tokens=longest + 20), own, [other])


def test_a_question_that_speaks_of_the_other_user_too_soon_is_refused(tokenizer):
    source = MOVIE.source.replace("User A", "{{ other|length }} films. User A")
    encoder = encoder_for(tokenizer, PromptTemplate(source, "mine"))
    others = [np.array([1, 2, 3], np.int32), np.array([2], np.int32)]
    with pytest.raises(RecipeError, match="says something of `other` before"):
        one_by_one(encoder, [0], others)
    one_by_one(encoder, [0], others[:1])
