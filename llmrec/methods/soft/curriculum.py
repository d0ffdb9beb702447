"""The curriculum while training: a probe answered by the live model sets each epoch's weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from llmrec.inference.engine import Engine, by_beams, live_engine, plan_of
from llmrec.inference.free_answers import Embedding, own_answers
from llmrec.methods.soft.answer_file import Question
from llmrec.model.curriculum import Mixture, adaptive, linear
from llmrec.recipe import Recipe
from llmrec.text.encoding import PromptEncoder

UNTUNED = "distance_untuned"


def curriculum_of(
    recipe: Recipe,
    encoder: PromptEncoder,
    questions: Sequence[Question],
    logged: Sequence[Mapping[str, Any]],
) -> Callable[[nn.Module, int, int], Mixture]:
    """What the trainer calls before each epoch: lambda, and what it was measured from.

    The probe is `soft.probe` of the `questions`, drawn with the recipe's seed. `logged`: the lines
    of an interrupted training, which know the first distance: the untuned model's, or that of the
    adapter that the recipe starts from.
    """
    soft = recipe.soft
    assert soft is not None  # noqa: S101  callers ask first
    drawn = np.random.default_rng([recipe.seed, 1]).permutation(len(questions))[: soft.probe]
    probe = [questions[i] for i in drawn]
    decode = by_beams(recipe.decode, soft.distill.beams)
    tuned = live_engine(encoder, decode)
    begins_untuned = recipe.model.start_from is None
    first = live_engine(encoder, decode, untuned=True) if begins_untuned else tuned
    embedding = Embedding(encoder)
    known: dict[str, float] = {}
    for line in logged:
        known |= {UNTUNED: line[UNTUNED]} if UNTUNED in line else {}

    def measured(engine: Engine) -> tuple[float, float]:
        """Mean distance of the best beam from the truth, and the share equal to the truth."""
        prompts = [encoder.prompt(question.history).ids for question in probe]
        truths = np.array([question.truth for question in probe])
        answers = own_answers(engine, prompts, soft.distill)
        best = [beams[0] for beams in answers]
        found = np.empty((len(probe), 2))
        for batch in plan_of(prompts, decode):
            texts = [best[i].text for i in batch]
            found[batch, 0] = embedding.distances(engine.model, texts, truths[batch].tolist())
        found[:, 1] = np.equal([beam.position for beam in best], truths)
        distance, equal = found.mean(axis=0)
        return float(distance), float(equal)

    def mixture(model: nn.Module, epoch: int, epochs: int) -> Mixture:
        facts: dict[str, float] = {}
        if probe:
            if UNTUNED not in known:
                known[UNTUNED], equal = measured(first(model))
                facts = {"distance": known[UNTUNED], "probe_equal_to_truth": equal}
            if epoch > 0 or not facts:  # epoch 0 begins with what the first distance is of
                distance, equal = measured(tuned(model))
                facts = {"distance": distance, "probe_equal_to_truth": equal}
            facts[UNTUNED] = known[UNTUNED]
        share = {
            "adaptive": lambda: adaptive(facts["distance"], facts[UNTUNED], soft.alpha),
            "fixed": lambda: soft.weight,
            "linear": lambda: linear(epoch, epochs),
            "none": lambda: 1.0,
        }[soft.schedule]()
        return Mixture((1.0 - share, share), {"lambda": share, **facts})

    return mixture
