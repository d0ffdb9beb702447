"""The curriculum while training: a probe asked of the live model sets each period's weights."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from llmrec.inference.engine import Engine, by_beams, live_engine
from llmrec.inference.free_answers import Embedding, own_answers
from llmrec.inference.title_states import item_states
from llmrec.methods.soft.answer_file import Question
from llmrec.methods.soft.distances import constant_distance, next_title_auc, shuffled_distance
from llmrec.model.curriculum import Mixture, adaptive, linear
from llmrec.recipe import Recipe
from llmrec.text.encoding import PromptEncoder

log = logging.getLogger("llmrec")
DISTANCE, UNTUNED, AUC = "distance", "distance_untuned", "auc"
INFORMED = 0.55  # below this AUC a distance says too little
Facts = dict[str, float]


def curriculum_of(
    recipe: Recipe,
    encoder: PromptEncoder,
    questions: Sequence[Question],
    logged: Sequence[Mapping[str, Any]],
) -> Callable[[nn.Module, int, int], Mixture]:
    """What the trainer calls before each period: lambda, and what it was measured from.

    The probe is `soft.probe` of the `questions`, drawn with the recipe's seed. `logged`: the lines
    of an interrupted training, which know the first distance: the untuned model's, or that of the
    adapter that the recipe starts from.
    """
    soft = recipe.soft
    assert soft is not None  # noqa: S101  callers ask first
    drawn = np.random.default_rng([recipe.seed, 1]).permutation(len(questions))[: soft.probe]
    probe = (_Nll if soft.measure == "nll" else _Answers)(
        recipe, encoder, [questions[i] for i in drawn]
    )
    known: Facts = {}
    for line in logged:
        known |= {name: line[name] for name in (UNTUNED, *probe.fixed) if name in line}

    def mixture(model: nn.Module, number: int, count: int) -> Mixture:
        facts: Facts = {}
        if probe.questions:
            if UNTUNED not in known:
                known.update(probe.beforehand(model))
                facts = probe.first(model)
                known[UNTUNED] = facts[DISTANCE]
            if number > 0 or not facts:  # training begins with what the first distance is of
                facts = probe.now(model)
            facts |= known
        share = {
            "adaptive": lambda: adaptive(facts[DISTANCE], facts[UNTUNED], float(soft.alpha)),
            "fixed": lambda: soft.weight,
            "linear": lambda: linear(number, count),
            "none": lambda: 1.0,
        }[soft.schedule]()
        return Mixture((1.0 - share, share), {"lambda": share, **facts})

    return mixture


class _Probe(ABC):
    """Some training prompts, asked of the model as it now is and as it first was."""

    fixed: tuple[str, ...] = ()  # what `beforehand` finds

    def __init__(
        self, recipe: Recipe, encoder: PromptEncoder, questions: Sequence[Question]
    ) -> None:
        assert recipe.soft is not None  # noqa: S101  callers ask first
        self.recipe, self.encoder, self.questions = recipe, encoder, questions
        self.prompts = [encoder.prompt(question.history).ids for question in questions]
        self.truths = np.array([question.truth for question in questions], np.int32)
        decode = by_beams(recipe.decode, recipe.soft.distill.beams)
        self._now = live_engine(encoder, decode)
        untuned = live_engine(encoder, decode, untuned=True)
        self._first = self._now if recipe.model.start_from is not None else untuned

    def beforehand(self, model: nn.Module) -> Facts:
        """What is known before anything is measured and stays so."""
        return {}

    def first(self, model: nn.Module) -> Facts:
        """`measured` of the model that training starts from."""
        return self.measured(self._first(model))

    def now(self, model: nn.Module) -> Facts:
        """`measured` of the live model."""
        return self.measured(self._now(model))

    @abstractmethod
    def measured(self, engine: Engine) -> Facts:
        """DISTANCE, and what tells of it."""


class _Nll(_Probe):
    """Mean minus log-likelihood of the true titles."""

    def measured(self, engine: Engine) -> Facts:
        """See `_Probe`."""
        nothing = [self.truths[:0]] * len(self.questions)
        return {DISTANCE: float(engine.nll(self.prompts, nothing, self.truths).mean())}


class _Answers(_Probe):
    """Mean distance of the best beam from the truth, in the untuned model's embedding."""

    fixed = (AUC, "distance_constant")

    def __init__(
        self, recipe: Recipe, encoder: PromptEncoder, questions: Sequence[Question]
    ) -> None:
        super().__init__(recipe, encoder, questions)
        self._embedding = Embedding(encoder)

    def beforehand(self, model: nn.Module) -> Facts:
        """Whether the distance says anything, and how near an answer comes that reads nothing."""
        states = item_states(self.recipe, self.encoder, model)
        truths = states[self.truths]
        shown = [question.history[-self.recipe.prompt.max_history :] for question in self.questions]
        auc = next_title_auc([states[h] for h in shown], truths, self.truths.tolist())
        constant = constant_distance(states, truths)
        log.info("soft: distances tell a user's next title from another's with AUC %.3f", auc)
        assert self.recipe.soft is not None  # noqa: S101  callers ask first
        if self.recipe.soft.schedule == "adaptive" and not auc >= INFORMED:
            log.warning(
                "soft: in the embedding of %s a user's next title is hardly nearer than another "
                "user's (AUC %.3f, chance is 0.5), so lambda would be steered by next to nothing; "
                "soft.measure=nll goes by the likelihood of the true titles instead",
                self.recipe.model.base,
                auc,
            )
        found = dict(zip(self.fixed, (auc, constant), strict=True))
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def measured(self, engine: Engine) -> Facts:
        """See `_Probe`; `distance_shuffled`: of the same answers to the other prompts."""
        assert self.recipe.soft is not None  # noqa: S101  callers ask first
        best = [b[0] for b in own_answers(engine, self.prompts, self.recipe.soft.distill)]
        texts = [beam.text for beam in best]
        titles = [self.encoder.titles[truth] for truth in self.truths]
        states = self._embedding.of(engine.model, [*texts, *titles]).astype(np.float64)
        answers, truths = states[: len(texts)], states[len(texts) :]
        facts = {
            DISTANCE: float(np.sqrt(((answers - truths) ** 2).sum(axis=1)).mean()),
            "distance_shuffled": shuffled_distance(answers, truths),
            "probe_equal_to_truth": float(np.mean([b.position for b in best] == self.truths)),
        }
        return {name: value for name, value in facts.items() if math.isfinite(value)}
