"""Where trackers (TensorBoard, Weights & Biases, MLflow, trackio) keep what training tells them.

In the run folder, and on this machine alone, unless the environment says otherwise.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrec.runs.folder import RunFolder

_KEY, _MODE = "WANDB_API_KEY", "WANDB_MODE"


@contextmanager
def tracking(folder: "RunFolder", report_to: Any) -> Iterator[None]:
    """Trackers that are made inside write below `folder.tracking`; what the environment has set
    stays, and it is as it was afterwards, so that the next run of a process has a place of its own.

    `report_to` is that of a recipe; where it is none nothing is made.
    """
    if report_to in ("none", [], None):
        yield
        return
    root = folder.tracking
    root.mkdir(parents=True, exist_ok=True)
    ours = {
        "TENSORBOARD_LOGGING_DIR": str(root / "tensorboard"),
        "WANDB_DIR": str(root),
        "MLFLOW_TRACKING_URI": f"sqlite:///{(root / 'mlflow.db').absolute()}",
        "TRACKIO_DIR": str(root / "trackio"),
        **({} if _KEY in os.environ else {_MODE: "offline"}),
    }
    ours = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
