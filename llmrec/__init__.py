"""Turn a Hugging Face language model into a recommender for your catalog.

The public names are loaded when they are first used, so that `import llmrec` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrec.data.catalog import Catalog
    from llmrec.systems.recommender import Recommender
    from llmrec.text.encoding import PromptEncoder
    from llmrec.text.templates import PromptTemplate
    from llmrec.text.tree import TokenTree
    from llmrec.text.trie import TitleTrie

__version__ = "0.1.0"
__all__ = ["Catalog", "PromptEncoder", "PromptTemplate", "Recommender", "TitleTrie", "TokenTree"]
_HOMES = {
    "Catalog": "llmrec.data.catalog",
    "PromptEncoder": "llmrec.text.encoding",
    "PromptTemplate": "llmrec.text.templates",
    "Recommender": "llmrec.systems.recommender",
    "TitleTrie": "llmrec.text.trie",
    "TokenTree": "llmrec.text.tree",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmrec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
