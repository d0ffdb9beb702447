"""Propensities: how likely an interaction is to be seen at all, from how often its item was chosen.

theta_i = max((n_i / max n) ** power, floor), over the N items' training counts. Losses weigh their
targets by 1 / theta, metrics their users by 1 / theta of the target. Source: Saito et al. 2020
(arXiv 1909.03601), which has power 0.5.
"""

import numpy as np
import numpy.typing as npt


def propensities(
    counts: npt.NDArray[np.integer], power: float, floor: float
) -> npt.NDArray[np.float64]:
    """(N,) in (0, 1], from training `counts` (N,). All 1 where nothing was counted."""
    most = counts.max(initial=0)
    if most == 0:
        return np.ones(len(counts))
    found: npt.NDArray[np.float64] = np.maximum((counts / most) ** power, floor)
    return found


def self_normalised(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(E,) numbers whose plain mean is `sum weights * values / sum weights`, over values (E,).

    Each is that ratio and how far its example moves it, so that the variance of their mean is that
    of the ratio to first order. An example without a value (NaN) has none and counts nowhere.
    """
    known = ~np.isnan(values)
    if not known.any():
        return values
    ratio = np.average(values[known], weights=weights[known])
    found: npt.NDArray[np.float64] = ratio + weights / weights[known].mean() * (values - ratio)
    return found
