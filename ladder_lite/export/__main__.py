"""`python -m ladder_lite.export`."""

from ladder_lite.errors import run
from ladder_lite.export import app

if __name__ == "__main__":
    run(app)
