"""A run folder: its layout, its stages while a run works in it, and reading it afterwards."""

from ladder_lite.runs import layout
from ladder_lite.runs.finished import Run, is_run, open_run, read_json
from ladder_lite.runs.run_dir import RunDir, Stage

__all__ = ["Run", "RunDir", "Stage", "is_run", "layout", "open_run", "read_json"]
