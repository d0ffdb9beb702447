"""The rows of training, handed out, are those that training reads."""

import numpy as np
import pytest

from llmrec.data.catalog import Catalog
from llmrec.errors import DataError
from llmrec.methods.handing_out import training_rows
from llmrec.methods.method import Job
from llmrec.stages import prepare


@pytest.mark.parametrize("shape", ["single", "all_targets"])
def test_rows_handed_out_spell_the_titles_of_their_targets(recipe_of, shape):
    recipe, folder = recipe_of(f"rows.shape={shape}")
    prepare.run(recipe, folder)
    folder.keep(recipe)
    given = training_rows(folder.root)
    job, catalog = Job.of(recipe, folder), Catalog.read(folder.items)
    assert len(given) == len(job.windows)
    for row, window in zip(given, job.windows, strict=True):
        assert len(row["labels"]) == len(row["predictors"]) == len(row["target_item_ids"])
        items = dict.fromkeys(row["target_item_ids"])
        wanted = [*window.history[1:], window.target] if shape != "single" else [window.target]
        assert list(items) == [catalog.item_ids[p] for p in wanted]
        last = job.encoder.completions[window.target].tolist()
        assert row["labels"][-len(last) :] == last
        assert row["input_ids"][-len(last) :] == last
        before = [row["position_ids"][p] + 1 for p in row["predictors"][-len(last) :]]
        assert row["position_ids"][-len(last) :] == before
        assert np.shape(row["spans"]) == (2, len(row["input_ids"]))


def test_rows_of_a_run_that_is_not_prepared_are_refused(recipe_of):
    recipe, folder = recipe_of()
    folder.keep(recipe)
    with pytest.raises(DataError, match="prepare"):
        training_rows(folder.root)
