"""Looking at prompts: what a real user's history becomes."""

from typing import Any

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import DataError
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare
from llmrec.text.encoding import NOTHING_ELSE

_LEARNED, _PLAIN = "\x1b[1;32m", "\x1b[0m"


def render(recipe: Recipe, folder: RunFolder, user: str | None = None) -> dict[str, Any]:
    """The training row of one user under the recipe's template, tokenizer and row shape, with the
    similar users and candidates that it shows.

    `pieces`: runs of tokens in reading order, with their text, ids, whether they are learned and,
    for those, the title they belong to. A piece's `parent` is the number of the piece it follows.
    """
    from llmrec.inference.from_recipe import encoder_of
    from llmrec.methods.windows import Window, training_rows
    from llmrec.stages.train import training_prompting

    prepare.run(recipe, folder)
    catalog = Catalog.read(folder.items)
    train = Examples.read(folder.examples("train"))
    row = 0 if user is None else _row_of(user, train)
    encoder = encoder_of(recipe, catalog)
    history = train.history(row)
    window = Window(str(train.user_ids[row]), history, int(train.targets[row]), row, len(history))
    prompting = training_prompting(recipe, folder, encoder, [window], keep=False)
    contexts = None if prompting is None else prompting.shown_first()
    tree = training_rows(recipe, encoder, [window], contexts)[0]
    shown = encoder.prompt(history, contexts[0] if contexts else NOTHING_ELSE)
    return {
        "user_id": str(train.user_ids[row]),
        "shape": recipe.rows.shape,
        "tokens": len(tree),
        "titles_shown": len(shown.history),
        "users_shown": len(shown.demonstrations),
        "titles_left_out_by_max_tokens": min(len(history), recipe.prompt.max_history)
        - len(shown.history),
        "pieces": [
            {
                "text": encoder.tokenizer.decode(s.ids),
                "ids": s.ids.tolist(),
                "learned": s.target >= 0,
                "title": catalog.titles[s.target] if s.target >= 0 else None,
                "parent": s.parent,
            }
            for s in tree.segments
        ],
    }


def painted(rendered: dict[str, Any], colour: bool) -> str:
    """A rendering for a person: learned tokens bright (or in [[ ]]), a branch on its own line."""
    lines = [
        f"user {rendered['user_id']}: {rendered['tokens']} tokens, shape {rendered['shape']}, "
        f"{rendered['titles_shown']} titles shown, "
        f"{rendered['titles_left_out_by_max_tokens']} left out by prompt.max_tokens",
        "",
    ]
    text, last = "", -1
    for number, piece in enumerate(rendered["pieces"]):
        if piece["parent"] != last:
            text += f"\n  --- branch after piece {piece['parent']} ---\n"
        begin, end = (_LEARNED, _PLAIN) if colour else ("[[", "]]")
        text += f"{begin}{piece['text']}{end}" if piece["learned"] else piece["text"]
        last = number
    ids = [
        f"{number:3d} {'learned' if piece['learned'] else 'read   '} {piece['ids']}"
        for number, piece in enumerate(rendered["pieces"])
    ]
    return "\n".join([*lines, text, "", "token ids by piece:", *ids])


def _row_of(user: str, train: Examples) -> int:
    found = np.flatnonzero(train.user_ids == user)
    if len(found) == 0:
        near = ", ".join(map(str, train.user_ids[:5]))
        raise DataError(f"user {user!r} has no training example; the first users are {near}")
    return int(found[0])
