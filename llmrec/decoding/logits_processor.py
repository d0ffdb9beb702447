"""The TitleTrie for other engines: a logits processor that leaves the tokens of titles alone.

For `generate` of transformers, whose beams under it are those of `beam_search`; and one prompt at a
time for engines that give the tokens written so far. The engine must be given no other change of
logits. Keeps no state between calls, so beams may be reordered as the engine likes. Knows neither
text nor a model.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor

from llmrec.decoding.open_items import OpenItems
from llmrec.text.trie import TREE_ROOT, TitleTrie, UnreachablePrefixError


class TrieLogitsProcessor(LogitsProcessor):
    """Allows behind a prompt of `prompt_length` tokens only what leads to an open item of `trie`.

    `closed`: for each of the prompts of a batch the positions that may not come out; without it all
    may. `end`: the token that closes every title, given again where a row is over.
    `renormalise`: the scores become log-probabilities over the allowed tokens, as the decoder's are
    by default; else they stay those over the vocabulary.
    """

    def __init__(
        self,
        trie: TitleTrie,
        prompt_length: int,
        end: int,
        closed: Sequence[npt.NDArray[np.integer]] | None = None,
        renormalise: bool = True,
    ) -> None:
        self.trie, self.prompt_length, self.end = trie, prompt_length, end
        self.renormalise = renormalise
        self._closed = closed
        self._open = OpenItems(trie, closed or [np.zeros(0, np.int32)])

    def allowed(self, written: Sequence[int], prompt: int = 0) -> npt.NDArray[np.int64]:
        """Token ids that may follow what was written behind a prompt; `end` where nothing may."""
        try:
            node = self.trie.walk(written)[-1] if len(written) else TREE_ROOT
        except UnreachablePrefixError:  # a beam of probability 0, or one that is over
            return np.array([self.end])
        children, _ = self._open.children(np.array([prompt]), np.array([node]))
        tokens = self.trie.tokens[children].astype(np.int64)
        return tokens if len(tokens) else np.array([self.end])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores (R, V) of R rows, several to a prompt where there are beams, -inf elsewhere.

        Raises ValueError where the rows are not those of the prompts that `closed` is of.
        """
        rows, prompts = len(input_ids), 1 if self._closed is None else len(self._closed)
        if rows % prompts:
            raise ValueError(f"{rows} rows are not those of {prompts} prompts")
        kept = torch.full_like(scores, -torch.inf)
        for row, written in enumerate(input_ids[:, self.prompt_length :].tolist()):
            prompt = row // (rows // prompts) if self._closed is not None else 0
            kept[row] = self._masked(written, scores[row], prompt)
        return kept

    def one(self, written: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """The logits (V,) after the tokens written behind the first prompt, -inf elsewhere."""
        return self._masked(written, logits, 0)

    def _masked(self, written: Sequence[int], scores: torch.Tensor, prompt: int) -> torch.Tensor:
        tokens = torch.from_numpy(self.allowed(written, prompt)).to(scores.device)
        values = scores[tokens]
        if self.renormalise:
            values = torch.log_softmax(values.float(), dim=-1).to(scores.dtype)
        return torch.full_like(scores, -torch.inf).index_put((tokens,), values)
