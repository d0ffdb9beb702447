"""What must hold of a run's networks: each is whole, and was trained on the interactions there."""

from typing import TYPE_CHECKING

from llmrec.data import sealed
from llmrec.data.files import sha256_of
from llmrec.stages.leakage_checks import Findings

if TYPE_CHECKING:
    from llmrec.runs.folder import RunFolder

STEPS = ("base", "cpft", "ce")
_TRAINED_ON = "data/interactions.parquet"


def check_networks(folder: "RunFolder", found: Findings) -> None:
    """Hold each network's own record of its data against the training interactions of the run."""
    trained_on = None
    for step in STEPS:
        place = folder.network(step)
        if not place.is_dir():
            continue
        found.checked["networks"] += 1
        name = place.relative_to(folder.root).as_posix()
        wrong = sealed.problem(place)
        if wrong is not None:
            found.wrong(f"{name}: {wrong}, so what it was trained on is not known")
            continue
        trained_on = trained_on or sha256_of(folder.interactions)
        known = sealed.facts(place).get("settings", {}).get(_TRAINED_ON)
        if known != trained_on:
            found.wrong(
                f"{name}: was trained on other interactions ({str(known)[:12]}) than the training "
                f"interactions of the run ({trained_on[:12]})"
            )
