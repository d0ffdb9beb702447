"""What goes with what in a recipe: one table, read when a recipe is made.

A rule is of a part of the recipe and is asked where that is there (not null). Knows nothing of
single keys' bounds, which stand beside the keys.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llmrec.recipe.systems import System, parsed

WITH_NEGATIVES = ("objective.dpo", "objective.sdpo")
OVER_CANDIDATES = ("objective.listwise", *WITH_NEGATIVES)
MOST_LETTERS = 26
OF_ONE_TARGET = (*OVER_CANDIDATES, "objective.grpo")


class Rule(NamedTuple):
    """`broken(recipe)`: what breaks it, put into `message` at `{}`; nothing or False: it holds."""

    part: str
    broken: Callable[[Any], object]
    message: str


def held(recipe: Any, path: str) -> Any:
    """What a recipe has at a dotted path; None where that, or a section on the way, is null."""
    for name in path.split("."):
        recipe = None if recipe is None else getattr(recipe, name)
    return recipe


def broken(recipe: Any) -> list[str]:
    """What the recipe says that cannot be, and what to do; empty where all goes together."""
    found = []
    for rule in RULES:
        if held(recipe, rule.part) is not None and (by := rule.broken(recipe)):
            found.append(rule.message.format(by))
    return [*found, *_lacking(recipe)]


def _without(path: str) -> Callable[[Any], bool]:
    return lambda recipe: held(recipe, path) is None


def _beside(path: str) -> Callable[[Any], bool]:
    return lambda recipe: held(recipe, path) is not None


def _system(which: Callable[[System], bool]) -> Callable[[Any], str]:
    """The name of the first such system of the table, or nothing."""
    return lambda recipe: next((s.name for s in parsed(recipe.systems) if which(s)), "")


def _has_several_targets(recipe: Any) -> bool:
    return bool(recipe.rows.shape != "single")


def _shows_context(recipe: Any) -> bool:
    return bool(recipe.prompt.task == "similar_users" or recipe.prompt.file is not None)


def _ranks(recipe: Any, answer: str) -> bool:
    return bool(recipe.validation.metric != "nll" and recipe.validation.answer == answer)


def _more_than_beams(recipe: Any) -> str:
    validation, decode = recipe.validation, recipe.decode
    among = recipe.data.candidates is not None  # which are ranked without a search
    if not _ranks(recipe, "constrained") or decode.kind == "best_first" or among:
        return ""
    few = f"validation.k = {validation.k} items cannot come out of decode.beams = {decode.beams}"
    return few if validation.k > decode.beams else ""


def _recomputes(recipe: Any) -> str:
    names = ("gradient_checkpointing", "activation_checkpointing", "torch_compile")
    return next((name for name in names if recipe.train.get(name)), "")


def _fixes_passes(recipe: Any) -> str:
    compiles = "train.torch_compile" if recipe.train.get("torch_compile") else ""
    return "model.cuda_graphs" if recipe.model.cuda_graphs else compiles


def _has_votes(recipe: Any) -> bool:
    return any(system.asks_similar_users for system in parsed(recipe.systems))


def _too_few_voters(demonstrations: Any) -> int:
    coarse: int = demonstrations.similarity.coarse
    return coarse if coarse < demonstrations.votes.users else 0


def _only_ce(recipe: Any) -> bool:
    steps = {system.step for system in parsed(recipe.systems) if system.kind == "network"}
    return "ce" in steps and "cpft" not in steps


def _not_of_candidates(recipe: Any) -> str:
    if recipe.objective.name != "msl":
        return "set objective.name: msl"
    if recipe.data.candidates is None or _has_several_targets(recipe):
        return "give data.candidates and rows.shape single"
    others = [name for name in (*OF_ONE_TARGET, "conformal") if held(recipe, name) is not None]
    return f"drop {others[0]}, which is a loss of its own" if others else ""


def _not_redrawn(recipe: Any) -> str:
    among = recipe.data.candidates
    if among is None or among.retriever is not None or _has_several_targets(recipe):
        return "give data.candidates of no retriever and rows.shape single"
    fixed = [name for name in (*WITH_NEGATIVES, "objective.grpo") if held(recipe, name) is not None]
    return f"drop it or {fixed[0]}, whose rows stay what they are" if fixed else ""


def _lacking(recipe: Any) -> Iterator[str]:
    """What the systems of the table need and the recipe does not have, one line a system."""
    for system in parsed(recipe.systems):
        lacking = ((p, why) for p, why in system.needs.items() if held(recipe, p) is None)
        for path, why in list(lacking)[:1]:
            what = path if "." in path else f"section {path}"
            yield f"system {system.name} {why}; it needs {what}"


def _more_than_others(name: str) -> Callable[[Any], bool]:
    """Whether a loss of this name asks for more negatives than there are other candidates."""
    return lambda recipe: (
        recipe.data.candidates is not None
        and held(recipe, name).negatives >= recipe.data.candidates.count
    )


def _another_of_one(name: str) -> Callable[[Any], str]:
    """Another loss of one target than that of this name, or nothing."""
    others = [other for other in OF_ONE_TARGET if other > name]
    return lambda recipe: next((o for o in others if held(recipe, o) is not None), "")


RULES = (
    Rule(
        "decode",
        lambda r: r.decode.cuda_graphs and r.decode.batches_in_flight > 1,
        "decode.cuda_graphs holds the passes of one batch; set decode.batches_in_flight: 1",
    ),
    Rule(
        "model",
        lambda r: r.model.cuda_graphs and _recomputes(r),
        "model.cuda_graphs captures passes that keep their activations, and train.{} drops or "
        "rewrites them; set one of the two to false",
    ),
    Rule(
        "model",
        lambda r: r.model.attn_implementation == "flex_attention" and _fixes_passes(r),
        "model.attn_implementation: flex_attention compiles attention by itself, which {} does not "
        "go with; set one of the two",
    ),
    Rule(
        "soft",
        _without("model.lora"),
        "soft measures distances in the untuned model, which is the tuned one with its adapter "
        "off; it needs model.lora",
    ),
    Rule(
        "soft",
        lambda r: r.objective.name == "msl" and r.soft.distill.decode == "free",
        "objective msl knows titles of the catalog alone and soft.distill.decode free gives other "
        "text too; set decode: constrained or objective sft",
    ),
    Rule(
        "soft",
        lambda r: r.soft.alpha == "auto" and r.soft.schedule != "adaptive",
        "soft.alpha is of schedule adaptive alone; drop alpha: auto or set schedule: adaptive",
    ),
    Rule(
        "soft",
        _beside("demonstrations"),
        "demonstrations and soft cannot be combined; drop one of them",
    ),
    Rule(
        "soft", _beside("data.candidates"), "soft knows no candidates; drop data.candidates or soft"
    ),
    Rule(
        "network",
        _only_ce,
        "system network_ce is trained for as many steps as network_cpft, which is not among the "
        "systems",
    ),
    Rule(
        "network",
        _system(lambda system: system.has_adapter),
        "a recipe with section network trains no language model; drop system {} or the section",
    ),
    Rule(
        "network",
        _beside("data.candidates"),
        "a network ranks the whole catalog; drop data.candidates or network",
    ),
    Rule(
        "conformal",
        lambda r: r.network is None and _has_several_targets(r),
        "conformal compares the candidates of one target; it needs rows.shape single",
    ),
    Rule(
        "conformal",
        lambda r: r.network is None and (r.soft is not None or r.demonstrations is not None),
        "conformal cannot be combined with soft or demonstrations",
    ),
    Rule(
        "conformal",
        lambda r: r.network is None and r.data.candidates is not None,
        "conformal draws its own candidates; drop data.candidates",
    ),
    Rule(
        "demonstrations",
        lambda r: _has_votes(r) and _too_few_voters(r.demonstrations),
        "system votes counts those of demonstrations.votes.users, more than the {} users that "
        "demonstrations.similarity.coarse finds; raise coarse",
    ),
    Rule(
        "demonstrations",
        lambda r: not _shows_context(r),
        "demonstrations are shown by prompt.task similar_users, or by a prompt.file of your own",
    ),
    Rule(
        "demonstrations",
        _has_several_targets,
        "demonstrations are those of one target, chosen by what came before it, so they need "
        "rows.shape single",
    ),
    Rule(
        "data.candidates",
        lambda r: _ranks(r, "grounding"),
        "validation.answer grounding ranks the whole catalog; drop it or data.candidates",
    ),
    Rule(
        "data.candidates",
        lambda r: _has_several_targets(r) and _shows_context(r),
        "candidates are those of one target; show them with rows.shape single, or take "
        "prompt.task next_item, which does not show them",
    ),
    Rule(
        "data.candidates",
        _system(lambda system: system.wants_catalog and system.kind == "language_model"),
        "system {} answers from the whole catalog; drop it or data.candidates",
    ),
    Rule(
        "data.candidates",
        lambda r: (
            r.data.candidates.retriever is None
            and _system(lambda system: system.way in ("fused", "routed"))(r)
        ),
        "system {} adds the log-probabilities of a retriever; give data.candidates.from",
    ),
    Rule(
        "data.candidates",
        _beside("evaluate.calibration"),
        "calibration is of answers from the whole catalog; drop evaluate.calibration or "
        "data.candidates",
    ),
    Rule(
        "objective",
        lambda r: r.objective.name == "sft" and r.objective.head == "titles",
        "the softmax of objective sft is over the whole vocabulary; objective.head titles needs "
        "objective.name msl",
    ),
    Rule(
        "objective",
        lambda r: r.objective.among == "candidates" and _not_of_candidates(r),
        "objective.among candidates is of objective.name msl over the data.candidates of "
        "rows.shape single; {}",
    ),
    Rule(
        "rows",
        lambda r: r.rows.redraw and _not_redrawn(r),
        "rows.redraw draws random candidates anew; {}",
    ),
    *(
        Rule(
            name,
            _without("data.candidates"),
            f"{name} chooses among candidates; it needs data.candidates",
        )
        for name in OVER_CANDIDATES
    ),
    *(
        rule
        for name in OF_ONE_TARGET
        for rule in (
            Rule(
                name,
                _has_several_targets,
                f"{name} is of one target behind a prompt; it needs rows.shape single",
            ),
            Rule(
                name,
                lambda r: (
                    r.conformal is not None or held(r, "demonstrations.selection") is not None
                ),
                f"{name} cannot be combined with conformal or demonstrations.selection",
            ),
            Rule(name, _another_of_one(name), f"{name} and {{}} are two losses; drop one"),
        )
    ),
    *(
        Rule(
            name,
            _more_than_others(name),
            f"{name}.negatives are candidates besides the target; data.candidates.count must be "
            "larger",
        )
        for name in WITH_NEGATIVES
    ),
    Rule(
        "prompt",
        lambda r: (
            r.prompt.letters
            and (r.data.candidates is None or r.data.candidates.count > MOST_LETTERS)
        ),
        f"prompt.letters are of candidates; it needs data.candidates of at most {MOST_LETTERS}",
    ),
    Rule(
        "prompt",
        lambda r: r.prompt.letters and not _shows_context(r),
        "prompt.letters are shown by prompt.task similar_users, or by a prompt.file of your own",
    ),
    Rule(
        "prompt",
        lambda r: (
            r.prompt.letters
            and any(system.has_adapter for system in parsed(r.systems))
            and (r.objective.name == "msl" or all(held(r, n) is None for n in OVER_CANDIDATES))
        ),
        "a letter is learned by a loss over candidates and the vocabulary; prompt.letters needs "
        f"objective.name sft and one of {', '.join(OVER_CANDIDATES)}",
    ),
    Rule(
        "objective.grpo",
        lambda r: (
            r.data.candidates is not None and r.objective.grpo.group > r.data.candidates.count
        ),
        "objective.grpo.group are the best of the candidates; data.candidates.count must be as "
        "large",
    ),
    Rule(
        "objective.propensity",
        lambda r: (r.soft or r.conformal or r.objective.grpo) is not None,
        "objective.propensity weighs targets of plain fine-tuning and of losses over candidates; "
        "drop it, or soft, conformal and objective.grpo",
    ),
    Rule(
        "rows",
        lambda r: r.rows.every == "item" and _has_several_targets(r),
        "rows of several targets learn each item of a window already; rows.every item needs "
        "rows.shape single",
    ),
    Rule(
        "rows",
        lambda r: r.rows.every == "item" and r.data.split == "sliding_window",
        "data.split sliding_window makes an example of each item already; drop rows.every item",
    ),
    Rule("validation", _more_than_beams, "{}"),
)
