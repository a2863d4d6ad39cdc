"""`python -m ladder_lite.doctor`."""

from ladder_lite.doctor import app
from ladder_lite.errors import run

if __name__ == "__main__":
    run(app)
