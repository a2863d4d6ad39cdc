"""`python -m ladder_lite.evaluate`."""

from ladder_lite.errors import run
from ladder_lite.evaluate import app

if __name__ == "__main__":
    run(app)
