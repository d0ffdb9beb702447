"""The target's NLL at a temperature, from the likeliest items and the target's own probability.

Every probability to the power 1 / T, over the sum of all these powers. Of items that are not listed
only the sum of probabilities is known, so the sum of their powers is the largest that this allows,
and the NLL is at most so large as is said; it is exact where the list is the whole catalog. The
temperature is fitted in validation, to the same quantity. Knows no systems and no files.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from llmrec.evaluation.calibration import COLDEST, HOTTEST, Listed
from llmrec.evaluation.intervals import Floats


def scaled_nll(listed: Listed, nll: Floats, unlisted: int, temperature: float) -> Floats:
    """(E,) the NLL at a temperature in nats; at 1 it is `nll` (E,), the targets' own.

    `unlisted`: how many items of the catalog stand behind a full list.
    """
    power = 1.0 / temperature
    with np.errstate(divide="ignore"):
        logs = np.log(listed.probabilities)
        most = np.log(listed.rest) * power
        if power <= 1.0:  # largest where all are alike
            most += (1.0 - power) * np.log(max(unlisted, 1))
        else:  # largest where as few as can be are as likely as the last one listed
            last = logs.min(axis=1, initial=0.0, where=listed.probabilities > 0)
            most = np.log(listed.rest) + (power - 1.0) * last
    total = np.logaddexp.reduce(np.c_[logs * power, most], axis=1)
    return np.asarray(nll * power + total)


def fitted_temperature(listed: Listed, nll: Floats, unlisted: int) -> float:
    """The temperature in [0.05, 20] of the least mean NLL; examples that have none are left out.

    1 where no example is left.
    """
    known = np.isfinite(nll)
    if not known.any():
        return 1.0
    own, values = listed.take(known), nll[known]

    def mean(log_temperature: float) -> float:
        return float(scaled_nll(own, values, unlisted, np.exp(log_temperature)).mean())

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    found = minimize_scalar(mean, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    # A flat mean, as of uniform guesses, tells no temperature from another.
    return float(np.exp(found.x)) if mean(found.x) < mean(0.0) - 1e-9 else 1.0
