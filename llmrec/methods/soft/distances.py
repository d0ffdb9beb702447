"""What a distance between titles can tell: of a user's next title, and of a model's answers.

Pure functions of vectors: states of titles in the untuned model. A curriculum that goes by the
distance of answers from the truth is steered by nothing where the distance does not tell a user's
next title from another user's, or where an answer that reads no prompt comes as near.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

Floats = npt.NDArray[np.floating]
CHUNK = 4096  # titles compared at a time


def next_title_auc(histories: Sequence[Floats], truths: Floats, positions: Sequence[int]) -> float:
    """How often a user's next title lies nearer to the user's history than another user's does.

    histories (Q): the states (h, d) of each user's titles; truths (Q, d): of the titles that came
    next, at catalog `positions` (Q,). Near is the mean Euclidean distance to the titles of a
    history; ties count half, a mean over users. 0.5 is chance; NaN where all titles are one.
    """
    places = np.asarray(positions)
    shares = []
    for number, history in enumerate(histories):
        others = places != places[number]
        if len(history) == 0 or not others.any():
            continue
        far = cdist(history, truths).mean(axis=0)
        own = far[number]
        shares.append((far[others] > own).mean() + 0.5 * (far[others] == own).mean())
    return float(np.mean(shares)) if shares else float("nan")


def constant_distance(titles: Floats, truths: Floats) -> float:
    """The mean distance of the best answer that is the same to every prompt.

    titles (N, d): states of all titles, one of which it is; truths (Q, d).
    """
    parts = (titles[at : at + CHUNK] for at in range(0, len(titles), CHUNK))
    return min(float(cdist(part, truths).mean(axis=1).min()) for part in parts)


def shuffled_distance(answers: Floats, truths: Floats) -> float:
    """The mean distance of answers (Q, d) from the truths (Q, d) of the other prompts.

    That is what answers shuffled over the prompts have on average; NaN for a single prompt.
    """
    if len(answers) < 2:
        return float("nan")
    every = cdist(answers, truths)
    return float((every.sum() - every.trace()) / (every.size - len(every)))
