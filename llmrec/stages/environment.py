"""`llmrec env`: versions and hardware, for a bug report. Reads no data."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from typing import Any

from llmrec.fetch.cache import cache_root
from llmrec.runs.folder import PACKAGES

ALSO = ("llmrec", "huggingface_hub", "safetensors", "pyarrow", "pydantic", "gguf", "bitsandbytes")


def run() -> dict[str, Any]:
    """{python, platform, cpus, accelerators, cuda, cache, packages}; None for what is not there."""
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
        "cuda": cuda_versions(),
        "cache": str(cache_root()),
        "packages": versions,
    }


def cuda_versions() -> dict[str, str | None]:
    """The CUDA versions of the driver and of the torch wheel, NCCL's, and whether they go together.

    A driver runs wheels of its own major version of CUDA and of older ones.
    """
    import torch

    driver, highest = _driver()
    wheel = torch.version.cuda
    nccl = None
    if wheel is not None and torch.distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    verdict = judged(highest, wheel, nccl)
    return {"driver": driver, "driver_cuda": highest, "wheel": wheel, "nccl": nccl, "told": verdict}


def judged(driver: str | None, wheel: str | None, nccl: str | None) -> str:
    """What the CUDA versions that a driver runs and a wheel is built for mean, and what to do."""
    if driver is None:
        return "no NVIDIA driver answers; torch runs on the CPU"
    if wheel is None:
        return (
            f"the driver runs CUDA {driver}, and this torch is built without CUDA: install a CUDA "
            "build of the version in constraints.txt"
        )
    if int(wheel.split(".")[0]) > int(driver.split(".")[0]):
        return (
            f"the driver runs CUDA {driver} at most, and this torch is built for {wheel}: install "
            f"a build for CUDA {driver.split('.')[0]} or a newer driver"
        )
    if nccl is None:
        return f"CUDA {wheel} on a driver for {driver}; without NCCL several GPUs cannot train"
    return f"CUDA {wheel} on a driver for {driver}, NCCL {nccl}: they go together"


def _driver() -> tuple[str | None, str | None]:
    """The driver's version and the highest CUDA that it runs, as `nvidia-smi` says them."""
    found = shutil.which("nvidia-smi")
    if found is None:
        return None, None
    said = subprocess.run([found], capture_output=True, text=True, check=False).stdout  # noqa: S603
    version = re.search(r"Driver Version: *([0-9.]+)", said)
    highest = re.search(r"CUDA(?: UMD)? Version: *([0-9.]+)", said)
    return version and version[1], highest and highest[1]


def _accelerators() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []
