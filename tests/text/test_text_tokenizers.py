"""Five kinds of tokenizers: titles come back as they were, none holds a control id, blanks and
begin tokens stand where the whole text would have them."""

import datetime
import json
import random
import unicodedata

import pytest

from llmrec.data.catalog import clean_title
from llmrec.errors import RecipeError
from llmrec.model.loading import BaseModel, embedding_rows, load_tokenizer
from llmrec.recipe.shipped import prompt_text
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

MOVIE = PromptTemplate(prompt_text("next_item/movie"), "movie")
WORDS = (
    "the a of and in to man night day love last dark star city dead blue red time world girl boy "
    "Someone watched these movies oldest first The movie they watched next naïve Café Über 1999"
)
CONTROL = ["<think>", "</think>", "<tool_call>", "<|im_end|>", "<s>", "</s>", "[MASK]", "<ctl>"]


def sentencepiece_folder(folder, kind, tokenizer_class, model_type):
    """A folder that ships only a `tokenizer.model`, as Llama 2, T5 and Gemma do."""
    import sentencepiece

    options = {"bpe": {"vocab_size": 420, "byte_fallback": True}, "unigram": {"vocab_size": 120}}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, *WORDS.split()] * 20),
        model_prefix=str(folder / "trained"),
        model_type=kind,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=["<ctl>"],
        minloglevel=2,
        **options[kind],
    )
    name = "spiece.model" if model_type == "t5" else "tokenizer.model"
    (folder / "trained.model").rename(folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}))
    config = {"model_type": model_type, "vocab_size": 600}
    (folder / "config.json").write_text(json.dumps(config))
    return load_tokenizer(BaseModel(str(folder)))


def byte_level(bos):
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bos)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([WORDS], trainer)
    inner.add_tokens([AddedToken(t, special=False) for t in ("<think>", "</think>", "<tool_call>")])
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", bos_token="<s>" if bos else None
    )


def word_piece():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    letters = sorted({*map(chr, range(33, 127)), *WORDS} - {" "})
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]", "[SEP]", "[MASK]"], initial_alphabet=letters
    )
    inner.train_from_iterator(
        [WORDS, " ".join(letters), " ".join(f"x{c}" for c in letters)], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="[SEP]", unk_token="[UNK]", mask_token="[MASK]"
    )


FAMILIES = ["byte-level", "byte-level with BOS", "llama", "t5", "gemma", "wordpiece"]


@pytest.fixture(scope="module")
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    return request.param, {
        "byte-level": lambda: byte_level(bos=False),
        "byte-level with BOS": lambda: byte_level(bos=True),
        "llama": lambda: sentencepiece_folder(folder, "bpe", "LlamaTokenizer", "llama"),
        "t5": lambda: sentencepiece_folder(folder, "unigram", "T5Tokenizer", "t5"),
        "gemma": lambda: sentencepiece_folder(folder, "bpe", "GemmaTokenizer", "gemma"),
        "wordpiece": word_piece,
    }[request.param]()


def random_titles(name, count):
    """Clean and distinct; for a tokenizer that knows no bytes of letters that it was shown."""
    rng = random.Random(0)
    known = sorted(set(WORDS) - {" "})
    any_character = [chr(c) for c in (*range(33, 0x250), *range(0x370, 0x400), 0x4E2D, 0x1F600)]
    letters = known if name in ("t5", "wordpiece") else any_character
    titles = {}
    while len(titles) < count:
        pieces = [
            "".join(rng.choices(letters, k=rng.randint(1, 6)))
            if rng.random() < 0.7
            else rng.choice([*WORDS.split(), *CONTROL])
            for _ in range(rng.randint(1, 5))
        ]
        title = clean_title(" ".join(pieces), 60)
        if title and (name != "t5" or not set("<>[]|/_") & set(title)):
            titles[title] = None
    return list(titles)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_titles_come_back_and_hold_no_control_token(family):
    name, tokenizer = family
    titles = random_titles(name, 2000)
    encoder = PromptEncoder(MOVIE, tokenizer, titles, max_tokens=10**6)
    control = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    trie = encoder.trie
    for position, title in enumerate(titles):
        ids = encoder.title_ids[position]
        assert not control & set(ids.tolist())
        completion = encoder.completions[position]
        assert position in trie.items_at(trie.walk(completion)[-1])
        if name == "wordpiece":  # blanks around signs are not kept
            assert "".join(encoder.written(completion).split()) == "".join(title.split())
            continue
        assert trie.items_at(trie.walk(completion)[-1]).tolist() == [position]
        compatible = unicodedata.normalize("NFKC", title) if name == "t5" else title
        assert encoder.written(completion) == compatible


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_prompt_has_the_blanks_and_begin_tokens_of_the_whole_text(family):
    name, tokenizer = family
    encoder = PromptEncoder(MOVIE, tokenizer, ["the man", "dark city", "love"])
    ids = encoder.prompt([1, 0]).ids
    text = "Someone watched these movies, oldest first:\ndark city\nthe man\n"
    text += "The movie they watched next:\n"
    if name in ("t5", "wordpiece"):  # these know no line ends
        found, text = (" ".join(t.split()) for t in (tokenizer.decode(ids), text))
        assert found.replace(" ", "") == tokenizer.decode(
            tokenizer(text, add_special_tokens=False)["input_ids"]
        ).replace(" ", "")
    else:
        assert tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ") == text
    bos = tokenizer("a")["input_ids"][0]
    begins = bos == tokenizer.bos_token_id
    assert ids.tolist().count(tokenizer.bos_token_id) == begins
    assert (ids[0] == tokenizer.bos_token_id) == begins
    assert tokenizer.bos_token_id not in encoder.completions[0].tolist()


def test_a_title_never_becomes_a_token_that_was_added_and_is_not_special(tokenizer):
    import copy

    from tokenizers import AddedToken

    thinking = copy.deepcopy(tokenizer)
    thinking.add_tokens([AddedToken("<think>", special=False)])
    titles = ["A <think> B", "A B"]
    encoder = PromptEncoder(MOVIE, thinking, titles)
    added = thinking.convert_tokens_to_ids("<think>")
    assert added in thinking("A <think> B", split_special_tokens=True)["input_ids"]
    assert added not in encoder.title_ids[0].tolist()
    assert added not in encoder.prompt([0]).ids.tolist()
    assert added not in encoder.standing_alone(titles[0]).tolist()
    assert added not in encoder.completion_of(titles[0]).tolist()
    assert thinking.decode(encoder.title_ids[0]) == titles[0]
    # A template means what it says.
    source = MOVIE.source.replace("next:", "next:<think>")
    encoder = PromptEncoder(PromptTemplate(source, "thinking"), thinking, titles)
    assert added in encoder.prompt([1]).ids.tolist()


def test_titles_are_encoded_as_before_where_nothing_is_odd(tokenizer):
    encoder = PromptEncoder(MOVIE, tokenizer, ["The Man II", "Amélie (2001)", "8½"])
    for title, ids in zip(encoder.titles, encoder.title_ids, strict=True):
        plain = tokenizer(title, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids.tolist() == plain


CLOCK = (
    "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y %H:%M') %}{%- endif %}"
    "<|im_start|>system\nToday: {{ day }}<|im_end|>\n<|im_start|>user\n"
    "{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
)


def clock_at(moment):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return moment

    return Clock


def test_the_prompt_does_not_change_with_the_clock(tokenizer, monkeypatch):
    import copy

    import transformers.utils.chat_template_utils as chat

    clocked = copy.deepcopy(tokenizer)
    clocked.chat_template = CLOCK
    made = []
    for year in (2031, 2032):
        monkeypatch.setattr(chat, "datetime", clock_at(datetime.datetime(year, 5, 6, 7, 8)))
        asked = clocked.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        assert f"06 May {year} 07:08" in asked
        made.append(PromptEncoder(MOVIE, clocked, ["Love"], form="chat").prompt([0]).ids.tolist())
    assert made[0] == made[1]
    assert "Today: 26 Jul 2024 00:00" in clocked.decode(made[0])
    told = PromptEncoder(
        MOVIE, clocked, ["Love"], form="chat", today=datetime.date(2030, 2, 1)
    ).prompt([0])
    assert "Today: 01 Feb 2030 00:00" in clocked.decode(told.ids)
    clocked.chat_template = CLOCK.replace("'%d %b %Y %H:%M'", "'%d ' ~ '%b'")
    with pytest.raises(RecipeError, match="asks for the time in a form that it makes up"):
        PromptEncoder(MOVIE, clocked, ["Love"], form="chat")
    PromptEncoder(MOVIE, clocked, ["Love"])


def test_a_token_without_an_embedding_is_named(tokenizer, tmp_path):
    rows = len(tokenizer) - 1
    last = tokenizer.convert_ids_to_tokens(rows)
    PromptEncoder(MOVIE, tokenizer, ["Love"], rows=rows)
    text = tokenizer.decode([rows])
    with pytest.raises(RecipeError, match=rf"has id {rows}, and the model's embedding has {rows}"):
        PromptEncoder(MOVIE, tokenizer, [text.strip() or "x", f"a{text}"], rows=rows)
    assert last
    source = MOVIE.source.replace("next:", "next:<|im_start|>")
    marker = tokenizer.convert_tokens_to_ids("<|im_start|>")
    encoder = PromptEncoder(PromptTemplate(source, "odd"), tokenizer, ["1"], rows=None)
    assert marker in encoder.prompt([0]).ids
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 77}))
    assert embedding_rows(BaseModel(str(tmp_path))) == 77
