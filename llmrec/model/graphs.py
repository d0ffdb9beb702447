"""CUDA graphs: many kernels launched at once, on the very tensors they were captured with.

Who captures gives what runs the same kernels on the same tensors each time. Knows no model.
"""

from collections.abc import Callable

import torch

from llmrec.errors import RecipeError

WARM = 2  # passes on the graph's stream before it is captured; libraries set themselves up in them


class Graphs:
    """Captures graphs that never run at the same time, so that they share memory.

    `switch`: the recipe's key that turns them off, for messages.
    """

    def __init__(self, device: torch.device, switch: str) -> None:
        self._device, self._switch = device, switch
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def captured(
        self, run: Callable[[], None], warm: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """What does again what `run` does, on the same tensors.

        `warm` runs before, on the graphs' stream, instead of `run` itself. Raises RecipeError where
        the model's code cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):  # left again even where a capture breaks off
            for _ in range(WARM):
                (warm or run)()
            try:
                # Other threads, such as those that load data, may go on meanwhile.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    run()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise RecipeError(
                    "a pass of this model cannot be captured as a CUDA graph "
                    f"({lines[0]}); set {self._switch}=false"
                ) from error
        return graph.replay


def graphs_on(device: torch.device, switch: str) -> Graphs | None:
    """Graphs where `device` has them, else nothing."""
    return Graphs(device, switch) if device.type == "cuda" else None
