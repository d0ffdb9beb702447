"""What the first GPU that this process may use computes in, asked of its driver: torch takes
seconds to be imported, and a recipe is read by commands that need none."""

import ctypes
from functools import cache
from importlib import metadata

_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_AMPERE = 8  # the first capability with bfloat16


@cache
def computes_in_bfloat16() -> bool:
    """Whether there is a GPU that the installed torch can use, and it computes in bfloat16."""
    try:
        if "+cpu" in metadata.version("torch"):
            return False
        driver = ctypes.CDLL("libcuda.so.1")
    except (OSError, metadata.PackageNotFoundError):
        return False
    device, major = ctypes.c_int(), ctypes.c_int()
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) == 0
        and major.value >= _AMPERE
    )
