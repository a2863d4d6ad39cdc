"""What several test files need: one thread a process, and the embedded model."""

import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores; this comes before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from ladder_lite.config.load import load_recipe
from ladder_lite.models import Backend, load_backend

pytest.register_assert_rewrite("tests.support")  # its assertions are told like those of tests


@pytest.fixture(scope="module")
def loaded() -> Backend:
    """The model of the tiny recipe, loaded once for all tests of a file."""
    return load_backend(load_recipe("tiny"))


@pytest.fixture
def backend(loaded: Backend) -> Iterator[Backend]:
    """The same, with the adapter that it was loaded with."""
    fresh = loaded.snapshot()
    yield loaded
    loaded.restore(fresh)
