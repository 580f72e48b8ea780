#!/bin/sh
# Runs all tests that compute with the instruction sets, numbers of threads and precisions that machines differ in.
# Arguments go to pytest, and replace the folders below if they name some: tests/matrix.sh tests/models
cd "$(dirname "$0")/.." || exit
[ $# -gt 0 ] || set -- tests/methods tests/models tests/data tests/training tests/evaluation tests/connector tests/stages
failed=0

combination() {
    settings=$1
    shift
    echo "== ${settings:-as it is}"
    # shellcheck disable=SC2086 # several assignments
    env $settings python -m pytest "$@" || failed=1
}

combination "ATEN_CPU_CAPABILITY=default SELFSIGHT_PRECISION=fp32 SELFSIGHT_TEST_THREADS=1" "$@"
combination "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 SELFSIGHT_PRECISION=fp32 SELFSIGHT_TEST_THREADS=4" "$@"
combination "SELFSIGHT_PRECISION=bf16" "$@"
combination "SELFSIGHT_PRECISION=auto" "$@"
exit $failed
