"""Data sets of the Hugging Face Hub, and folders in its forms, as one Parquet file in the cache.

`hf://OWNER/NAME[/CONFIG][:SPLIT]`, `hf://FOLDER[:SPLIT]`, or a folder that `save_to_disk` wrote.
Read as a stream, so that no data set has to fit into memory. Columns that hold no single value are
left out. Knows nothing of what the columns mean.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing
from llmrec.errors import DataError

PREFIX = "hf://"
_SAVED = ("dataset_dict.json", "state.json")
_BATCH = 50_000


def is_hub_data(source: str) -> bool:
    """Whether a `data.source` is read with the `datasets` library."""
    path = Path(source).expanduser()
    return source.startswith(PREFIX) or any((path / name).is_file() for name in _SAVED)


def as_parquet(source: str, cache: Path, offline: bool = False) -> Path:
    """The data set as Parquet below `cache`; made once for each version of it.

    Raises DataError where it cannot be loaded, or where a split has to be named.
    """
    import datasets

    name, split = _parsed(source)
    saved = any((Path(name) / file).is_file() for file in _SAVED)
    try:
        if saved:
            loaded: Any = datasets.load_from_disk(name)
            splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
            chosen = splits[_split_of(source, split, list(splits))]
            version, rows = chosen._fingerprint, chosen
        else:
            repository, config = _repository(name)
            builder = datasets.load_dataset_builder(
                repository,
                config,
                download_config=datasets.DownloadConfig(local_files_only=offline),
            )
            known = list(builder.info.splits or {}) or list(builder.as_streaming_dataset())
            part = _split_of(source, split, known)
            version, rows = builder.hash, builder.as_streaming_dataset(split=part)
            split = part
    except DataError:
        raise
    except Exception as error:  # the library raises its own kinds and those of three others
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"data.source {source!r} cannot be loaded with the `datasets` library ({reason}). It "
            "is hf://OWNER/NAME[/CONFIG][:SPLIT], hf://FOLDER[:SPLIT] or a folder of save_to_disk"
        ) from error
    key = hashlib.sha256(f"{source} {split} {version}".encode()).hexdigest()[:32]
    path = cache / "hub-data" / key / "interactions.parquet"
    if not path.is_file():
        _write(path, _tables(rows.with_format("arrow").iter(batch_size=_BATCH)), source)
    return path


def _parsed(source: str) -> tuple[str, str | None]:
    name = os.path.expanduser(source.removeprefix(PREFIX))
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and "/" not in tail and "\\" not in tail else (name, None)


def _repository(name: str) -> tuple[str, str | None]:
    """A folder, or owner/name and the configuration behind it."""
    if Path(name).is_dir():
        return name, None
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"data.source hf://{name} is not hf://OWNER/NAME[/CONFIG][:SPLIT]")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _split_of(source: str, split: str | None, known: list[str]) -> str:
    if split is None and len(known) == 1:
        return known[0]
    if split is None or split not in known:
        raise DataError(
            f"data.source {source!r}: the data set has the splits {', '.join(known)}; name one, as "
            f"{source.partition(':' + split)[0] if split else source}:{known[0]}"
        )
    return split


def _tables(batches: Iterable[Any]) -> Iterator[pa.Table]:
    for batch in batches:
        table: pa.Table = batch
        simple = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
        yield table.select(simple).replace_schema_metadata(None)


def _write(path: Path, tables: Iterator[pa.Table], source: str) -> None:
    first = next(tables, None)
    if first is None:
        raise DataError(f"data.source {source!r} has no rows")
    with replacing(path) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table.cast(first.schema))
