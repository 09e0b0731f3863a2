"""Shared by all tests: few threads, no windows, a cache of their own, real data where there is any."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):      # workers share the cores; before torch starts
    os.environ.setdefault(variable, "1")

import matplotlib  # noqa: E402

matplotlib.use("Agg")       # here and not as MPLBACKEND, which the chapters' kernels would inherit


def pytest_configure(config):
    if "SEGFORMER_LITE_CACHE" not in os.environ:
        config.own_cache = os.environ["SEGFORMER_LITE_CACHE"] = tempfile.mkdtemp(prefix="segformer_tests_")


def pytest_unconfigure(config):
    if hasattr(config, "own_cache"):
        del os.environ["SEGFORMER_LITE_CACHE"]
        shutil.rmtree(config.own_cache, ignore_errors=True)


@pytest.fixture(autouse=True)
def memory_as_it_was(monkeypatch):
    """What the command line asks of the whole process would reach the tests after it."""
    monkeypatch.setattr("segformer_lite.cli.keep_freed_memory", lambda: None)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real images (coco/, coco_person/, chest_ct/), which is no part of the course."""
    folder = os.environ.get("SEGFORMER_LITE_REALDATA")
    if not folder:
        pytest.skip("needs real images: SEGFORMER_LITE_REALDATA is not set to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"SEGFORMER_LITE_REALDATA is set to {folder}, which is no folder")
    return Path(folder)
