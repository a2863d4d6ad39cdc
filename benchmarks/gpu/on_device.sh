#!/usr/bin/env bash
# Run one of the two calls on the GPU machine, at the project's root:
#
#     OUT=FOLDER bash .gpu/kit/on_device.sh first|second SECONDS
#
# The first call installs the wheels. With REHEARSE=1, all stages run with tiny models on a CPU, with $PYTHON.
set -euo pipefail
: "${OUT:?set OUT to the folder for results}"
export OUT BEGAN=$(date +%s) KIT=${KIT:-.gpu} WORK=${WORK:-/tmp/ladder-gpu}
export PYTHONPATH=$PWD:$WORK/site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 UNSLOTH_ENABLE_LOGGING=1
export LADDER_LITE_CACHE=$WORK/cache TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton
mkdir -p "$OUT" "$WORK"
for part in part0 part1; do cp "$KIT/$part/smollm.bin" "$WORK/$part" 2>/dev/null || true; done # each call has one half
if [ -n "${REHEARSE:-}" ]; then
  export CUDA_VISIBLE_DEVICES=
elif [ ! -d "$WORK/site/unsloth" ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$WORK/site" "$KIT"/wheels/*.whl
fi
exec "${PYTHON:-python3}" benchmarks/gpu/stages.py "$1" "$2" ${REHEARSE:+--rehearse}
