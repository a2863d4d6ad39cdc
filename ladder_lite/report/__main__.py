"""`python -m ladder_lite.report`."""

from ladder_lite.errors import run
from ladder_lite.report import app

if __name__ == "__main__":
    run(app)
