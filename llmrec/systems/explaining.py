"""Why a language model listed what it did: the prompt by tokens, and the choices of the search.

The choices are those on the way to the listed items, each with the probabilities that the decoder
gave to the open continuations. Reads the prompt again; changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import Catalog
from llmrec.decoding.likelihood import PathScores
from llmrec.decoding.open_items import OpenItems, child_log_probabilities
from llmrec.inference.engine import Engine
from llmrec.text.encoding import EncodedPrompt, PromptEncoder
from llmrec.text.trie import TREE_ROOT

Items = npt.NDArray[np.int32]
SHOWN = 5  # continuations of a choice that are named besides those that lead to listed items


@dataclass(frozen=True)
class _Choice:
    """Open continuations of a node (C,), and their log-probabilities (C,)."""

    children: npt.NDArray[np.int64]
    log_p: npt.NDArray[np.float64]


def tokens_of(prompt: EncodedPrompt, encoder: PromptEncoder) -> list[dict[str, Any]]:
    """The tokens of a prompt: `id`, `text`, and `kind`: template, control, or title.

    `title` is that of the history item whose token it is, else None.
    """
    control = set(encoder.tokenizer.all_special_ids)
    owner = np.full(len(prompt.ids), -1)
    for number, (start, end) in enumerate(zip(prompt.title_starts, prompt.title_ends, strict=True)):
        owner[start:end] = number
    return [
        {
            "id": token,
            "text": encoder.tokenizer.decode([token]),
            "kind": "title" if at >= 0 else "control" if token in control else "template",
            "title": encoder.titles[prompt.history[at]] if at >= 0 else None,
        }
        for token, at in zip(prompt.ids.tolist(), owner.tolist(), strict=True)
    ]


def search_tree(
    engine: Engine,
    catalog: Catalog,
    prompt: EncodedPrompt,
    closed: Items,
    listed: Items,
    probabilities: npt.NDArray[np.float64] | None = None,
    weight: float = 1.0,
    shut: Items | None = None,
) -> dict[str, Any]:
    """The choices on the way to the `listed` (K,) items behind a prompt, as a tree.

    A node: `text` of its tokens, `p` of it at its choice, `log_p` of the whole way, `open` items
    below, `items` that end there, whether a listed one lies below (`listed`), `children`, most
    probable first, and `rest`: how many continuations are not named and their probability.
    `closed`, `probabilities` (1, N), `weight` and `shut`: as the engine's `rank` has them.
    """
    count, encoder = len(listed), engine.encoder
    choices: dict[int, _Choice] = {}
    on_the_way = {TREE_ROOT}
    for target in listed.tolist():
        on_the_way.update(encoder.trie.walk(encoder.completions[target]).tolist())
    q = None if probabilities is None else np.repeat(probabilities, count, axis=0)
    for _, scores in engine.paths([prompt.ids] * count, [closed] * count, listed, q, shut):
        choices |= _choices(scores, weight)
    open_items = OpenItems(encoder.trie, [closed], probabilities, shut)
    return _Tree(encoder, catalog, open_items, choices, on_the_way).node([], TREE_ROOT, 1.0, 0.0)


def _choices(scores: PathScores, weight: float) -> Mapping[int, _Choice]:
    """The choices on some paths, by the first of their continuations' parents."""
    log_p = child_log_probabilities(
        scores.logits,
        scores.owner,
        scores.open_items,
        scores.user[scores.owner],
        scores.children,
        weight,
    )
    ends = np.searchsorted(scores.owner, np.arange(len(scores.user) + 1))
    found = {}
    for number in range(len(scores.user)):
        part = slice(ends[number], ends[number + 1])
        children = scores.children[part]
        # A node is known by its first open continuation: no other node has the same.
        found[int(children[0])] = _Choice(children, log_p[part])
    return found


@dataclass(frozen=True)
class _Tree:
    encoder: PromptEncoder
    catalog: Catalog
    open_items: OpenItems
    choices: Mapping[int, _Choice]
    on_the_way: set[int]

    def node(self, before: Sequence[int], at: int, p: float, log_p: float) -> dict[str, Any]:
        """The tree from node `at` on, which is reached by the tokens `before`."""
        tokens, last, user = list(before), at, np.zeros(1, np.int64)
        while True:  # on to where there is a choice, or an end
            children, _ = self.open_items.children(user, np.array([last]))
            ends = self.open_items.items_at(user, np.array([last]))[0]
            if len(children) != 1 or len(ends):
                break
            last = int(children[0])
            tokens.append(int(self.encoder.trie.tokens[last]))
        eos = self.encoder.tokenizer.eos_token_id
        text = self.encoder.tokenizer.decode([token for token in tokens if token != eos])
        choice = self.choices.get(int(children[0])) if len(children) > 1 else None
        shown = [] if choice is None else self._shown(choice)
        return {
            "text": text,
            "p": p,
            "log_p": log_p,
            "open": int(self.open_items.count(user, np.array([last]))[0]),
            "items": [
                {"item_id": self.catalog.item_ids[i], "title": self.catalog.titles[i]}
                for i in ends.tolist()
            ],
            "listed": at in self.on_the_way,
            "children": [
                self.node(
                    [int(self.encoder.trie.tokens[choice.children[c]])],
                    int(choice.children[c]),
                    float(np.exp(choice.log_p[c])),
                    log_p + float(choice.log_p[c]),
                )
                for c in shown
                if choice is not None
            ],
            "rest": {
                "count": len(children) - len(shown),
                "p": max(0.0, 1.0 - float(np.exp(choice.log_p[shown]).sum())) if choice else None,
            },
        }

    def _shown(self, choice: _Choice) -> list[int]:
        """Which continuations are named: the likeliest, and those that lead to listed items."""
        order = np.argsort(-choice.log_p, kind="stable").tolist()
        return [
            c
            for rank, c in enumerate(order)
            if rank < SHOWN or int(choice.children[c]) in self.on_the_way
        ]
