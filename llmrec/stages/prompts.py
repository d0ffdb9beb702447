"""Looking at prompts: what a real user's history becomes."""

from typing import TYPE_CHECKING, Any

from llmrec.data.catalog import Catalog
from llmrec.errors import DataError
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare
from llmrec.text.encoding import NOTHING_ELSE

if TYPE_CHECKING:
    from llmrec.methods.method import Job

_LEARNED, _PLAIN = "\x1b[1;32m", "\x1b[0m"


def render(recipe: Recipe, folder: RunFolder, user: str | None = None) -> dict[str, Any]:
    """The latest training row of one user, as the recipe's method trains it; by default the first.

    Raises DataError for a user without a training row.
    """
    from llmrec.methods.method import Job

    prepare.run(recipe, folder)
    return rendered(Job.of(recipe, folder), user)


def rendered(job: "Job", user: str | None = None) -> dict[str, Any]:
    """The latest training row of one user, see `render`.

    What a live model adds to rows while it is trained is not there yet. `pieces`: runs of tokens in
    reading order, with their text, ids, whether they are learned or compared with what is
    (`compared`: other candidates), and for either the title they belong to. A piece's `parent` is
    the number of the piece it follows.
    """
    from llmrec.methods.plain import PLAIN
    from llmrec.methods.table import method_of

    recipe, titles = job.recipe, Catalog.read(job.folder.items).titles
    number = _window_of(user, job)
    job, window = job.only(number), job.windows[number]
    method = method_of(recipe)
    [tree] = (method.shown or method.rows or PLAIN.rows)(job)
    contexts, history = job.contexts, window.history
    shown = job.encoder.prompt(history, contexts[0] if contexts else NOTHING_ELSE)
    return {
        "user_id": window.user_id,
        "shape": recipe.rows.shape,
        "tokens": len(tree),
        "titles_shown": len(shown.history),
        "users_shown": len(shown.demonstrations),
        "titles_left_out_by_max_tokens": len(history) - len(shown.history),
        "pieces": [
            {
                "text": job.encoder.tokenizer.decode(s.ids),
                "ids": s.ids.tolist(),
                "learned": s.target >= 0 and s.kind not in method.compared,
                "compared": s.target >= 0 and s.kind in method.compared,
                "title": titles[s.target] if 0 <= s.target < len(titles) else None,
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
        f"{number:3d} {_use(piece):8} {piece['ids']}"
        for number, piece in enumerate(rendered["pieces"])
    ]
    return "\n".join([*lines, text, "", "token ids by piece:", *ids])


def _window_of(user: str | None, job: "Job") -> int:
    """The number of the user's latest training row; without a user, of the first user's."""
    mine = [
        (window.example, window.end, number)
        for number, window in enumerate(job.windows)
        if user is None or window.user_id == user
    ]
    if not mine:
        near = ", ".join(dict.fromkeys(window.user_id for window in job.windows[:5]))
        raise DataError(
            f"user {user!r} has no training row among the {len(job.windows)} of this recipe; some "
            f"users that have are {near}"
        )
    if user is None:
        first = min(mine)[0]
        mine = [one for one in mine if one[0] == first]
    return max(mine)[-1]


def _use(piece: dict[str, Any]) -> str:
    if piece["learned"]:
        return "learned"
    return "compared" if piece["compared"] else "read"
