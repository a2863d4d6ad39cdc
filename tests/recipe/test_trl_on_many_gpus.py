"""The script that trains on exported variants with TRL alone, tried on a CPU."""

import json
import re
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from ladder_lite import tiny
from ladder_lite.install import shipped


def test_the_script_trains_on_exported_variants(tmp_path: Path) -> None:
    rows = [
        {"integrand": f"{n}*x", "variable": "x", "lower": None, "upper": None, "answer": None, "depth": 1}
        for n in range(2, 10)
    ]
    (tmp_path / "variants.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = shipped("recipes") / "trl_on_many_gpus.py"
    options = ["variants.jsonl", "--model", str(Path(tiny.__file__).parent), "--cpu", "--steps", "2", "--out", "out"]
    result = subprocess.run(
        [sys.executable, str(script), *options], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert any("lora_A" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    # The embedded model was not made for this prompt and gets no reward, but the verifier has graded its replies.
    assert re.search(r"'rewards/reward/mean': '?0", result.stdout)
