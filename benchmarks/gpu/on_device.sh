#!/usr/bin/env bash
# Started at the project's root on the GPU machine, where prepare.sh has put a copy into .gpu/kit:
#
#     OUT=FOLDER bash .gpu/kit/on_device.sh first SECONDS     # installs the wheels, then measures until SECONDS are over
#     OUT=FOLDER bash .gpu/kit/on_device.sh second SECONDS    # on the same machine: SmolLM2
#
# REHEARSE=1 takes all stages with tiny models on a CPU, in the Python of $PYTHON.
set -euo pipefail
export BEGAN=$(date +%s) KIT=${KIT:-.gpu} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
: "${OUT:?names the folder for results}"
export WORK=${WORK:-/tmp/ladder-gpu}
export LADDER_LITE_CACHE=$WORK/cache TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton
export UNSLOTH_ENABLE_LOGGING=1 PYTHONPATH=$PWD:$WORK/site
mkdir -p "$OUT" "$WORK"
for part in part0 part1; do
  if [ -f "$KIT/$part/smollm.bin" ]; then cp "$KIT/$part/smollm.bin" "$WORK/$part"; fi
done
if [ -z "${REHEARSE:-}" ] && [ ! -d "$WORK/site" ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$WORK/site" "$KIT"/wheels/*.whl
fi
exec "${PYTHON:-python3}" benchmarks/gpu/stages.py "$1" "$2" ${REHEARSE:+--rehearse}
