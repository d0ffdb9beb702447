"""`llmrec env`: which versions of CUDA go together."""

import stat

import pytest

from llmrec.stages import environment


@pytest.mark.parametrize(
    ("driver", "wheel", "nccl", "told"),
    [
        (None, "12.8", "2.27.3", "no NVIDIA driver"),
        ("12.4", None, None, "built without CUDA"),
        ("12.4", "13.0", "2.28.9", "a build for CUDA 12"),
        ("12.4", "12.8", "2.27.3", "go together"),
        ("13.1", "12.8", "2.27.3", "go together"),
        ("12.4", "12.8", None, "several GPUs cannot train"),
    ],
)
def test_versions_that_go_together_and_not(driver, wheel, nccl, told):
    assert told in environment.judged(driver, wheel, nccl)


def test_the_driver_says_what_it_runs(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        "echo '| NVIDIA-SMI 550.54.15  Driver Version: 550.54.15   CUDA Version: 12.4 |'\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = environment.cuda_versions()
    assert (found["driver"], found["driver_cuda"]) == ("550.54.15", "12.4")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert environment.cuda_versions()["driver"] is None
