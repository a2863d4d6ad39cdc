"""`python -m ladder_lite.problems`."""

from ladder_lite.errors import run
from ladder_lite.problems import _app

if __name__ == "__main__":
    run(_app())
