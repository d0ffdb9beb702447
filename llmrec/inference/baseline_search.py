"""How far baselines are searched for, and what they get that they cannot make themselves."""

from llmrec.baselines.title_vectors import Vectors
from llmrec.baselines.tuning import Search
from llmrec.data.catalog import Catalog
from llmrec.fetch import cache
from llmrec.recipe import Recipe


def search_of(recipe: Recipe, catalog: Catalog) -> Search:
    """As the recipe says; networks are kept by content in the cache, for every run."""

    def sentences() -> Vectors:
        from llmrec.inference.title_states import sentence_vectors

        return sentence_vectors(recipe.baselines.encoder, catalog.titles, "baselines.encoder")

    return Search(recipe.baselines.trials, cache.networks_root(), sentences)
