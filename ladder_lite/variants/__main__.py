"""`python -m ladder_lite.variants`."""

from ladder_lite.errors import run
from ladder_lite.variants import app

if __name__ == "__main__":
    run(app)
