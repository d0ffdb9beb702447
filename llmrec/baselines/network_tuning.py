"""Sequential networks tuned in validation: so many settings, each trained until patience ends it.

The first setting is the one asked for, the others differ in dropout, learning rate and width, in an
order that is the same for every network and data set. What a setting gave is kept by content where
a store is given, so nothing is trained twice: neither by another run nor by a longer search.
Knows no recipe and no place for the store. Importing this module imports torch.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from llmrec.baselines.fdsa import FDSA
from llmrec.baselines.gru4rec import GRU4Rec
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sequential import FittedNetwork, Network, Sequential, default_device
from llmrec.data import sealed
from llmrec.data.files import unique
from llmrec.data.records import Examples, Interactions
from llmrec.workers import as_they_end, workers

log = logging.getLogger("llmrec")
WEIGHTS = "model.safetensors"
VERSION = 1  # raised when the same settings and data would give other weights
KINDS: Mapping[str, type[Sequential]] = {"sasrec": SASRec, "gru4rec": GRU4Rec, "fdsa": FDSA}
# What the trials after the first one change, in their order: dropout to a value, learning rate and
# width by a factor.
CHANGES: tuple[Mapping[str, Any], ...] = (
    {"dropout": 0.5},
    {"dropout": 0.5, "width": 2},
    {"rate": 1 / 3},
    {"dropout": 0.5, "rate": 1 / 3},
    {"width": 2},
    {"dropout": 0.1},
    {"dropout": 0.7, "width": 2},
    {"dropout": 0.7},
    {"dropout": 0.1, "rate": 1 / 3},
    {"dropout": 0.5, "width": 2, "rate": 1 / 3},
)


@dataclass(frozen=True)
class TunedNetwork:
    """The network that ranked validation best, its settings, and what every setting gave.

    `trials`: (settings, validation NDCG@10, the epoch that was kept, seconds), in the order tried.
    """

    fitted: FittedNetwork
    settings: Sequential
    trials: list[tuple[Sequential, float, int, float]]

    @property
    def ndcg(self) -> float:
        """Validation NDCG@10 of the network that was kept."""
        return max(ndcg for _, ndcg, _, _ in self.trials)


@dataclass(frozen=True)
class Store:
    """Trained networks below a folder, each in a sealed one that is named by what it is made from.

    Several processes may use it; the last one that makes the same thing wins.
    """

    root: Path

    def read(self, key: Mapping[str, Any], network: Callable[[], Network]) -> Any:
        """(network, facts) of what stands whole under a key, or None.

        `network` makes an untrained one of the same sizes.
        """
        place = self._place(key)
        if not place.is_dir() or sealed.problem(place) is not None:
            return None
        facts, made = sealed.facts(place), network()
        made.load_state_dict(load_file(place / WEIGHTS))
        return FittedNetwork(made.to(default_device()).eval(), 1.0, facts["epoch"]), facts

    def keep(self, key: Mapping[str, Any], fitted: FittedNetwork, **facts: Any) -> None:
        """Write a network and what is known of it."""
        place = self._place(key)
        staged = place.with_name(f".{place.name}.{unique()}")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        state = fitted.network.state_dict()
        save_file({name: t.cpu().contiguous() for name, t in state.items()}, staged / WEIGHTS)
        sealed.seal(staged, place, key=key, epoch=fitted.epoch, **facts)

    def _place(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.root / hashlib.sha256(text.encode()).hexdigest()[:32]


def settings_to_try(start: Sequential, trials: int) -> list[Sequential]:
    """The first so many settings: `start`, then what `CHANGES` makes of it, each once."""
    changed = [
        replace(
            start,
            dropout=change.get("dropout", start.dropout),
            learning_rate=start.learning_rate * change.get("rate", 1),
            hidden=start.hidden * change.get("width", 1),
        )
        for change in CHANGES
    ]
    return list(dict.fromkeys([start, *changed]))[:trials]


@dataclass(frozen=True)
class Task:
    """What settings are trained on and judged by, and where what they gave is kept."""

    train: Interactions
    items: int
    valid: Examples
    filter_seen: bool
    seed: int
    store: Store | None = None
    titles: Sequence[str] = ()

    def key(self, settings: Sequential) -> dict[str, Any]:
        """What makes the weights of a setting what they are."""
        return {
            "version": VERSION,
            "kind": type(settings).__name__,
            "settings": asdict(replace(settings, temperature=1.0)),
            "filter_seen": self.filter_seen,
            "seed": self.seed,
            **content_of(self.train, self.items, self.valid),
            **({"titles": _hash_of(self.titles)} if settings.reads_titles else {}),
        }

    def known(self, settings: Sequential) -> Any:
        """(network, facts) of a setting that is kept, or None."""
        if self.store is None:
            return None
        made = partial(settings.network, self.items, self.titles)
        return self.store.read(self.key(settings), made)

    def trained(self, settings: Sequential) -> tuple[FittedNetwork, dict[str, Any]]:
        """(network, facts) of a setting, trained unless it is kept, and kept where it can be."""
        known = self.known(settings)
        if known is not None:
            fitted, facts = known
        else:
            begun = time.monotonic()
            fitted = settings.fit(
                self.train, self.items, self.valid, self.filter_seen, self.seed, self.titles
            )
            ndcg = fitted.ndcg(self.valid, self.filter_seen)
            facts = {"ndcg": ndcg, "seconds": round(time.monotonic() - begun, 2)}
            if self.store is not None:
                self.store.keep(self.key(settings), fitted, **facts)
        log.info("%s: valid NDCG@10 %.4f at epoch %d", settings, facts["ndcg"], fitted.epoch)
        return fitted, facts


def tune(tries: Sequence[Sequential], task: Task, at_once: int = 1) -> TunedNetwork:
    """Train each setting and keep the one that ranks validation best, the first of equals.

    With a store `at_once` of those it does not have are trained at the same time, each in a process
    of its own, to the same weights. Without a validation example there is nothing to choose by, so
    the first alone is trained.
    """
    tries = list(dict.fromkeys(tries))[: None if len(task.valid) else 1]
    new = [] if task.store is None or at_once == 1 else [s for s in tries if not task.known(s)]
    if len(new) > 1:
        with workers(min(at_once, len(new))) as pool:
            for future in as_they_end([pool.submit(_train_apart, task, one) for one in new]):
                future.result()
    tried, best = [], None
    for settings in tries:
        fitted, facts = task.trained(settings)
        tried.append((settings, facts["ndcg"], fitted.epoch, facts["seconds"]))
        if best is None or facts["ndcg"] > best[1]:
            best = (fitted, facts["ndcg"], settings)
    assert best is not None  # noqa: S101  there is always a first setting
    return TunedNetwork(best[0], best[2], tried)


def _train_apart(task: Task, settings: Sequential) -> None:
    """Leave what a setting gives in the store."""
    task.trained(settings)


def content_of(train: Interactions, items: int, valid: Examples) -> dict[str, Any]:
    """What a network learns from and is chosen by, as a hash: orders and positions, no times."""
    read = hashlib.sha256()
    arrays = (
        np.flatnonzero(np.diff(train.user)),
        train.position,
        valid.offsets,
        valid.positions,
        valid.targets,
    )
    for array in arrays:
        read.update(np.ascontiguousarray(array, np.int64).tobytes() + b"|")
    return {"data": read.hexdigest(), "items": items}


def _hash_of(titles: Sequence[str]) -> str:
    """SHA-256 over titles in their order."""
    return hashlib.sha256(json.dumps(list(titles)).encode()).hexdigest()
