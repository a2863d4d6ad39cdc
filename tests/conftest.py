"""Tests run in as many processes as there are cores: each then computes with one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
