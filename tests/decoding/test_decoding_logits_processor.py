"""Plain `generate` of transformers under our trie gives our beams, in items, order and scores."""

import numpy as np
import pytest
import torch

from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.logits_processor import TrieLogitsProcessor
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.recipe.shipped import prompt_text
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate
from llmrec.text.trie import TitleTrie

TITLES = ["The Man", "The Man II", "Dark City", "Dark Star", "A Star", "Last Dance", "Love", "Red"]
NOTHING = np.zeros(0, np.int32)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return PromptEncoder(PromptTemplate(prompt_text("next_item/movie")), tokenizer, TITLES)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("beams", [1, 4])
def test_generate_gives_our_beams(tiny_model, encoder, beams, renormalise):
    histories = [[3, 1], [0, 5]]
    prompts = [encoder.prompt(h).ids for h in histories]
    closed = [np.array(h, np.int32) for h in histories]
    length, end = max(map(len, prompts)), encoder.tokenizer.eos_token_id
    ours = beam_search(
        SharedPrompt(tiny_model, prompts),
        OpenItems(encoder.trie, closed),
        beams=beams,
        top_k=beams,
        scoring=Scoring(renormalise),
    )
    padded = [np.pad(p, (length - len(p), 0), constant_values=-1) for p in prompts]
    ids = torch.from_numpy(np.stack(padded).astype(np.int64))
    out = tiny_model.generate(
        ids.clamp(min=0),
        attention_mask=(ids >= 0).long(),
        max_new_tokens=max(map(len, encoder.completions)),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=end,
        eos_token_id=end,
        logits_processor=[TrieLogitsProcessor(encoder.trie, length, end, closed, renormalise)],
        return_dict_in_generate=True,
        output_scores=True,
    )
    item_of = {tuple(c.tolist()): i for i, c in enumerate(encoder.completions)}
    written = out.sequences[:, length:].tolist()
    items = [item_of[tuple(w[: w.index(end) + 1])] for w in written]
    assert items == [p for ranking in ours for p in ranking.positions.tolist()]
    if beams > 1:  # else transformers gives no score
        scores = np.concatenate([ranking.scores for ranking in ours])
        np.testing.assert_allclose(out.sequences_scores.numpy(), scores, rtol=1e-5, atol=1e-4)


def test_only_what_leads_to_an_open_item_is_allowed():
    trie = TitleTrie.from_sequences([[5, 1, 0], [5, 2, 0], [7, 0], [5, 1, 9, 0]])
    processor = TrieLogitsProcessor(trie, 2, end=0, closed=[NOTHING, np.array([0, 2, 3])])
    assert sorted(processor.allowed([], 0).tolist()) == [5, 7]
    assert processor.allowed([], 1).tolist() == [5]
    assert processor.allowed([5], 1).tolist() == [2]
    assert sorted(processor.allowed([5, 1], 0).tolist()) == [0, 9]
    for over in ([5, 1, 0], [5, 1, 0, 0], [6]):
        assert processor.allowed(over, 0).tolist() == [0]
    logits = torch.arange(10, dtype=torch.float32)
    rows = processor(torch.tensor([[8, 8, 5], [8, 8, 5]]), torch.stack([logits, logits]))
    expected = torch.log_softmax(torch.tensor([1.0, 2.0]), 0)
    assert torch.isfinite(rows).nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]
    torch.testing.assert_close(rows[0, [1, 2]], expected)
    assert torch.equal(rows[0], processor.one([5], logits))
    with pytest.raises(ValueError, match="3 rows are not those of 2 prompts"):
        processor(torch.zeros(3, 3, dtype=torch.long), torch.zeros(3, 10))
