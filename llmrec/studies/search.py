"""`llmrec train --tune`: values of a recipe's keys searched for in validation, by optuna.

Each trial is a run folder of its own, called by its values, so that a search that was interrupted
goes on in the trial that it was in. The journal beside them has every trial. Needs the extra
`tune`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec import stopping
from llmrec.data.files import write_json
from llmrec.errors import LlmrecError, RecipeError
from llmrec.evaluation.layout import laid_out
from llmrec.recipe import Recipe, plain_yaml
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.studies.running import figures_of

log = logging.getLogger("llmrec")
FOUND, JOURNAL = "tuned.json", "trials.log"
_RANGE = re.compile(r"(?P<low>[^.,:]\S*?)\.\.(?P<high>[^:,]+?)(?P<log>:log)?$")


@dataclass(frozen=True)
class Space:
    """Where the value of a key is searched for: one of `values`, or a number from `low` to `high`,
    by its logarithm where `log`."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @staticmethod
    def parse(text: str) -> "Space":
        """From section.key=V1,V2,... or section.key=LOW..HIGH or LOW..HIGH:log. Raises RecipeError
        for anything else."""
        key, equals, said = text.partition("=")
        wrong = RecipeError(
            f"--tune {text}: written section.key=V1,V2,... or section.key=LOW..HIGH, and :log "
            "behind it where the search is over orders of magnitude"
        )
        if not (key and equals and said):
            raise wrong
        ranged = _RANGE.fullmatch(said)
        if ranged is None:
            texts = said.split(",")
            if not all(texts) or len(set(texts)) < 2:
                raise wrong
            return Space(key, tuple(plain_yaml.read(value).value for value in texts))
        low, high = (plain_yaml.read(ranged[name]).value for name in ("low", "high"))
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high))
        if not numbers or low >= high or (ranged["log"] and low <= 0):
            raise wrong
        return Space(key, (), low, high, bool(ranged["log"]))

    def suggested(self, trial: Any) -> Any:
        """A value that a trial of optuna suggests."""
        if self.values:
            return trial.suggest_categorical(self.key, self.values)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, float(self.low), float(self.high), log=self.log)


def run(
    reference: str, overrides: Sequence[str], spaces: Sequence[str], trials: int
) -> dict[str, Any]:
    """Train up to `trials` times with the values that optuna suggests; the best and a table.

    The best is by the recipe's own validation. Runs stand below <output_dir>/<name>-tune, and the
    same command goes on where it was; with more trials it adds some. Raises RecipeError for spaces
    that the recipe does not take and without optuna.
    """
    try:
        import optuna
    except ImportError as error:
        raise RecipeError("--tune needs optuna: pip install 'llmrec[tune]'") from error
    wanted = [Space.parse(text) for text in spaces]
    if len({space.key for space in wanted}) < len(wanted):
        raise RecipeError("--tune: every key once")
    base = load(reference, list(overrides))
    for space in wanted:
        for value in space.values or (space.low, space.high):
            load(reference, [*overrides, _setting(space.key, value)])
    root = Path(base.output_dir).expanduser() / f"{base.name}-tune"
    root.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(root / JOURNAL))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=_hash([base.model_dump(mode="json", exclude={"output_dir"}), list(spaces)]),
        direction="minimize" if _is_loss(base) else "maximize",
        sampler=optuna.samplers.TPESampler(seed=base.seed),
        load_if_exists=True,
    )
    _take_up_again(study)
    while len(_finished(study)) < trials:
        stopping.check()
        trial = study.ask()
        values = {space.key: space.suggested(trial) for space in wanted}
        _try(reference, overrides, root, study, trial, values)
    return _found(study, root)


def _try(
    reference: str,
    overrides: Sequence[str],
    root: Path,
    study: Any,
    trial: Any,
    values: dict[str, Any],
) -> None:
    """Train with the values of a trial, and tell the study what validation says."""
    from llmrec.stages import pipeline  # brings torch

    name = f"trial-{_hash(values)[:8]}"
    own = [_setting(key, value) for key, value in values.items()]
    given = [*overrides, *own, f"name={name}", f"output_dir={root}"]
    recipe = load(reference, given)
    folder = RunFolder.of(recipe)
    said = ", ".join(f"{key} {_word(value)}" for key, value in values.items())
    log.info("tune: trial %d: %s", trial.number + 1, said)
    trial.set_user_attr("run", str(folder.root))
    try:
        figures = figures_of(pipeline.train(recipe, folder))
    except LlmrecError as error:
        trial.set_user_attr("failed", str(error))
        study.tell(trial, state=_state("FAIL"))
        log.warning("tune: trial %d failed: %s", trial.number + 1, error)
        if len([t for t in study.trials if "failed" in t.user_attrs]) > 3 + len(_finished(study)):
            raise
        return
    folder.keep(recipe)
    measured = {key: value for key, value in figures.items() if "valid_" in key}
    if not measured or not isinstance(value := [*measured.values()][-1], int | float):
        raise RecipeError(
            "--tune looks at validation, and this recipe has none: set train.eval_strategy"
        )
    trial.set_user_attr("measured", [*measured][-1])
    study.tell(trial, float(value))


def _take_up_again(study: Any) -> None:
    """What was running when the search was interrupted is asked again first."""
    for trial in study.get_trials(states=[_state("RUNNING")]):
        study.tell(trial.number, state=_state("FAIL"))
        study.enqueue_trial(trial.params)


def _found(study: Any, root: Path) -> dict[str, Any]:
    done = _finished(study)
    best = study.best_trial
    measured = best.user_attrs["measured"]
    rows = [
        [str(t.number + 1), *(_word(v) for v in t.params.values()), f"{t.value:.6g}"]
        for t in sorted(done, key=lambda t: t.value, reverse=study.direction.name == "MAXIMIZE")
    ]
    found = {
        "best": best.params,
        measured: best.value,
        "run": best.user_attrs["run"],
        "trials": len(done),
        "failed": [t.user_attrs["failed"] for t in study.trials if "failed" in t.user_attrs],
    }
    write_json(root / FOUND, found)
    header = ["trial", *best.params, measured]
    return {**found, "table": laid_out(header, rows, "text"), "settings": _as_settings(best.params)}


def _as_settings(values: dict[str, Any]) -> str:
    return " ".join(_setting(key, value) for key, value in values.items())


def _is_loss(recipe: Recipe) -> bool:
    return recipe.network is None and recipe.validation.metric == "nll"


def _finished(study: Any) -> list[Any]:
    return list(study.get_trials(states=[_state("COMPLETE")]))


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _setting(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
