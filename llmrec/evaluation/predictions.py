"""What one system answered for a test split, as `recommend` writes it and evaluation reads it.

One row an example, in the order of the test split. Knows no metrics and no place for the files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing
from llmrec.data.records import USER_ID, Ints, Longs, concatenated, offsets_of
from llmrec.errors import DataError

ITEMS, SCORES, NLL, COLD_PLACE = "items", "scores", "nll", "cold_place"
METADATA_KEY = b"llmrec"
LEAKY = "leaky"  # of hyperparameters: prompts show what must not be known

Kind = Literal["baseline", "network", "language_model", "external"]


@dataclass(frozen=True)
class SystemInfo:
    """Who answered, and everything needed to say how: stands in the file's metadata as JSON.

    `distribution`: the system gives every item a probability, so `nll` is defined. `seconds`: time
    taken for all examples. `provenance`: data hash, model commit, dtype, batch size and the like.
    """

    system: str
    kind: Kind
    distribution: bool
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = float("nan")
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @staticmethod
    def read(path: Path) -> "SystemInfo":
        """What the file of some predictions says of its system, without the predictions.

        Raises DataError for a file that is something else.
        """
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(path, error) from None
        return _info(path, schema.names, schema.metadata)


def leaky_notes(hyperparameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a table says where some of its systems, by name, had prompts that leak."""
    leaky = [name for name, said in hyperparameters.items() if said.get(LEAKY)]
    if not leaky:
        return []
    return [
        f"LEAKY, of no use but to compare with: {', '.join(leaky)}. Prompts show what other users "
        "of the same split chose next (demonstrations.by leaky)."
    ]


@dataclass(frozen=True)
class Predictions:
    """Rankings of E examples end to end; ranking i is `items[offsets[i]:offsets[i + 1]]`.

    `items` are positions, best first, -1 for an answer that is no catalog item; `scores` belong to
    them; `nll` (E,) is -log p(target) in nats, NaN where the system is no distribution over items,
    infinite where it rules the target out (a target that is in the history, with seen items out).
    `cold_places` (E,), where the system was asked: the place, from 0, of a target that never occurs
    in training among all such items alone; infinite behind the list, NaN for other targets.
    """

    info: SystemInfo
    user_ids: npt.NDArray[np.object_]
    offsets: Longs
    items: Ints
    scores: npt.NDArray[np.float32]
    nll: npt.NDArray[np.float64]
    cold_places: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def ranking(self, index: int) -> Ints:
        """Positions of one example, best first."""
        return self.items[self.offsets[index] : self.offsets[index + 1]]

    def rankings(self) -> list[Ints]:
        """All Rankings, as views."""
        return [self.ranking(i) for i in range(len(self))]

    def of_provenance(self, provenance: Mapping[str, Any]) -> "Predictions":
        """The same answers, said to rest on something else or more."""
        return replace(self, info=replace(self.info, provenance=provenance))

    @staticmethod
    def of(
        info: SystemInfo,
        user_ids: npt.NDArray[np.object_],
        items: Sequence[Ints],
        scores: Sequence[npt.NDArray[np.floating[Any]]],
        nll: npt.NDArray[np.float64],
        cold_places: npt.NDArray[np.float64] | None = None,
    ) -> "Predictions":
        """From one array of positions and one of scores for each example."""
        flat = np.concatenate(scores).astype(np.float32) if len(scores) else np.zeros(0, np.float32)
        return Predictions(
            info, user_ids, offsets_of(items), concatenated(items), flat, nll, cold_places
        )

    def write(self, path: Path) -> None:
        """Write as Parquet: user_id, items, scores, nll, and cold_place where there are places.

        `info` stands in the schema's metadata.
        """
        offsets = pa.array(self.offsets.astype(np.int32))
        columns = {
            USER_ID: pa.array(self.user_ids, pa.string()),
            ITEMS: pa.ListArray.from_arrays(offsets, pa.array(self.items, pa.int32())),
            SCORES: pa.ListArray.from_arrays(offsets, pa.array(self.scores, pa.float32())),
            NLL: pa.array(self.nll, pa.float64()),
        }
        if self.cold_places is not None:
            columns[COLD_PLACE] = pa.array(self.cold_places, pa.float64())
        table = pa.table(columns)
        info = json.dumps(asdict(self.info), ensure_ascii=False)
        with replacing(path) as temporary:
            pq.write_table(table.replace_schema_metadata({METADATA_KEY: info.encode()}), temporary)

    @staticmethod
    def read(path: Path) -> "Predictions":
        """Read what `write` wrote. Raises DataError for a file that is something else."""
        try:
            table = pq.read_table(path).combine_chunks()
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(path, error) from None
        info = _info(path, table.column_names, table.schema.metadata)
        items, scores = table[ITEMS].combine_chunks(), table[SCORES].combine_chunks()
        offsets = items.offsets.to_numpy().astype(np.int64)
        return Predictions(
            info,
            np.array(table[USER_ID].to_pylist(), dtype=object),
            offsets - offsets[0],
            items.flatten().to_numpy().astype(np.int32),
            scores.flatten().to_numpy().astype(np.float32),
            table[NLL].to_numpy().astype(np.float64),
            table[COLD_PLACE].to_numpy().astype(np.float64)
            if COLD_PLACE in table.column_names
            else None,
        )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: not a readable Parquet file ({error}). Run `llmrec recommend` again."
    )


def _info(path: Path, columns: Sequence[str], metadata: Mapping[bytes, bytes] | None) -> SystemInfo:
    missing = {USER_ID, ITEMS, SCORES, NLL} - set(columns)
    described = (metadata or {}).get(METADATA_KEY)
    if missing or described is None:
        lacking = ", ".join(sorted(missing)) or "its description (schema metadata `llmrec`)"
        raise DataError(
            f"{path}: no predictions file, it lacks {lacking}. Write it with `llmrec recommend`."
        )
    try:
        said = json.loads(described)
        kind = said["kind"]
        if kind not in get_args(Kind):
            raise ValueError(f"kind {kind!r} is none of {', '.join(get_args(Kind))}")
        seconds = said.get("seconds")
        return SystemInfo(
            str(said["system"]),
            kind,
            bool(said["distribution"]),
            dict(said.get("hyperparameters") or {}),
            float("nan") if seconds is None else float(seconds),
            dict(said.get("provenance") or {}),
            tuple(said.get("notes") or ()),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the description of its system cannot be used ({error!r}). "
            "Run `llmrec recommend` again."
        ) from None
