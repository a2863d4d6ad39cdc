"""`python -m ladder_lite.solve`."""

from ladder_lite.errors import run
from ladder_lite.solve import app

if __name__ == "__main__":
    run(app)
