"""`llmrec env`: versions and hardware, for a bug report. Reads no data."""

import importlib.metadata
import os
import platform
from typing import Any

from llmrec.fetch.cache import cache_root
from llmrec.runs.folder import PACKAGES

ALSO = ("llmrec", "huggingface_hub", "safetensors", "pyarrow", "pydantic", "gguf", "bitsandbytes")


def run() -> dict[str, Any]:
    """{python, platform, cpus, accelerators, cache, packages}; None for what is not installed."""
    versions: dict[str, str | None] = dict.fromkeys((*ALSO, *PACKAGES))
    for name in versions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "accelerators": _accelerators(),
        "cache": str(cache_root()),
        "packages": versions,
    }


def _accelerators() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []
