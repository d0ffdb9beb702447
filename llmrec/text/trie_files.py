"""A TitleTrie as a folder of flat arrays, which processes map into memory and share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmrec.data.mapped import MappedArrays
from llmrec.text.trie import TitleTrie

ARRAYS = ("tokens", "begin", "children", "low", "high", "items", "rank")
FILES = MappedArrays("trie", dict.fromkeys(ARRAYS, np.int32))


def write(trie: TitleTrie, folder: Path, key: str) -> None:
    """Write a trie made from what `key` names; see `MappedArrays.write`."""
    FILES.write(vars(trie), folder, key)


def read(folder: Path, key: str, verify: bool = True) -> TitleTrie:
    """The trie in `folder`, mapped and read-only; see `MappedArrays.read`."""
    return TitleTrie(**FILES.read(folder, key, verify))


def shared(make: Callable[[], TitleTrie], folder: Path, key: str) -> TitleTrie:
    """The trie that `key` names, mapped from `folder`; made and written there if it is not."""
    return TitleTrie(**FILES.shared(folder, key, lambda: vars(make())))
