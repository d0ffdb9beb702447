"""Rankings and targets by item id, as the arrays of positions that metrics are worked out on.

Knows neither files nor metrics.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec.evaluation.foreign import matched, ranking_of, targets_of
from llmrec.evaluation.rankings import NO_ITEM, IntArray, Rankings


def as_positions(rankings: Any, targets: Any) -> tuple[Rankings, IntArray]:
    """What metrics take, from positions, ids or tables; positions are given back as they are.

    Ids: U lists of texts and, for each user, a target or a list of them; None is no item. Tables:
    DataFrames or Arrow tables of a row an item, as `evaluation.foreign` names their columns; their
    users are matched, U are those with targets in the order of their first one. Raises ValueError
    where one of the two is a table or holds texts and the other does not, DataError for a table
    that lacks columns.
    """
    tables = [hasattr(value, "__arrow_c_stream__") for value in (rankings, targets)]
    if all(tables):
        return matched(ranking_of(rankings), targets_of(targets))
    if any(tables):
        raise ValueError("rankings and targets must both be tables, or both be lists")
    texts = [_first_is_text(value) for value in (rankings, targets)]
    if not any(texts):
        return rankings, targets
    if texts == [True, False] and any(map(_present, targets)):
        raise ValueError("rankings hold ids as text and targets numbers; give both alike")
    if texts == [False, True] and any(len(row) for row in rankings):
        raise ValueError("targets are ids as text and rankings hold numbers; give both alike")
    codes: dict[Any, int] = {None: NO_ITEM}

    def coded(ids: Sequence[Any]) -> IntArray:
        return np.array([codes.setdefault(one, len(codes)) for one in ids], np.int64)

    wanted = [coded([one] if one is None or isinstance(one, str) else one) for one in targets]
    matrix = np.full((len(wanted), max(map(len, wanted), default=1)), NO_ITEM, np.int64)
    for row, ids in enumerate(wanted):
        matrix[row, : len(ids)] = ids
    return [coded(row) for row in rankings], matrix


def _first_is_text(value: Any) -> bool:
    """Whether the first id in a list, or in a list of lists, is a text."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OUT":
        return False
    for one in value:
        if isinstance(one, str):
            return True
        if one is None:
            continue
        if not isinstance(one, (Sequence, np.ndarray)):
            return False
        found = next((inner for inner in one if inner is not None), None)
        if found is not None:
            return isinstance(found, str)
    return False


def _present(target: Any) -> bool:
    return target is not None and np.size(target) > 0
