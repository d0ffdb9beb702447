"""The curriculum while training: a probe answered by the live model sets each epoch's weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from llmrec.decoding.beginning import beginning_of
from llmrec.inference.free_answers import Answering, Embedding
from llmrec.methods.soft.answer_file import Question
from llmrec.model.curriculum import Mixture, adaptive, linear
from llmrec.model.loading import adapter_off
from llmrec.recipe import Recipe
from llmrec.runs.batch_files import batches
from llmrec.runs.processes import gathered, share_of
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
    of an interrupted training, which know the untuned model's distance.
    """
    soft = recipe.soft
    assert soft is not None  # noqa: S101  callers ask first
    drawn = np.random.default_rng([recipe.seed, 1]).permutation(len(questions))[: soft.probe]
    probe = [questions[i] for i in drawn]
    answering = Answering(encoder, soft.distill, recipe.decode)
    embedding = Embedding(encoder)
    known: dict[str, float] = {}
    for line in logged:
        known |= {UNTUNED: line[UNTUNED]} if UNTUNED in line else {}

    def measured(model: nn.Module) -> tuple[float, float]:
        """Mean distance of the best beam from the truth, and the share equal to the truth."""
        mine = [probe[i] for i in share_of(len(probe))]
        prompts = [encoder.prompt(question.history).ids for question in mine]
        beginning = beginning_of(model, prompts)
        found = np.empty((len(mine), 2))
        for batch in batches(list(map(len, prompts)), recipe.decode.batch_size):
            answers = answering.ask(
                model, [mine[i].history for i in batch], [prompts[i] for i in batch], beginning
            )
            best = [beams[0] for beams in answers]
            truths = [mine[i].truth for i in batch]
            found[batch, 0] = embedding.distances(model, [beam.text for beam in best], truths)
            found[batch, 1] = np.equal([beam.position for beam in best], truths)
        distance, equal = gathered(found, len(probe)).mean(axis=0)
        return float(distance), float(equal)

    def mixture(model: nn.Module, epoch: int, epochs: int) -> Mixture:
        facts: dict[str, float] = {}
        if probe:
            if UNTUNED not in known:
                with adapter_off(model):
                    known[UNTUNED], equal = measured(model)
                facts = {"distance": known[UNTUNED], "probe_equal_to_truth": equal}
            if epoch > 0 or not facts:  # a fresh adapter changes nothing, so epoch 0 is untuned
                distance, equal = measured(model)
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
