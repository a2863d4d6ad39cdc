"""Fixtures for several test files: the embedded model. Limits each pytest-xdist worker to one thread."""

import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many workers as cores; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from ladder_lite.config.load import load_recipe
from ladder_lite.models import Backend, load_backend

pytest.register_assert_rewrite("tests.support")  # failed assertions there show their values, as in test files


@pytest.fixture(scope="module")
def module_backend() -> Backend:
    """The model of the tiny recipe, loaded once for each test file."""
    return load_backend(load_recipe("tiny"))


@pytest.fixture
def backend(module_backend: Backend) -> Iterator[Backend]:
    """The loaded model; its initial adapter is restored after each test."""
    fresh = module_backend.snapshot()
    yield module_backend
    module_backend.restore(fresh)
