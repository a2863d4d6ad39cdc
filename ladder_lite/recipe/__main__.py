"""`python -m ladder_lite.recipe`."""

from ladder_lite.errors import run
from ladder_lite.recipe import app

if __name__ == "__main__":
    run(app)
