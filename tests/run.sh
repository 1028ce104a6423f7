#!/usr/bin/env bash
# Installs what the tests need and runs them: bash tests/run.sh [pytest options]. With --checks: lint, types, layers.
# bash tests/run.sh -m "not slow" takes about a minute on two cores; all tests take several.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source ./setup.sh
if ! "$python" - <<'PYTHON'
import importlib.metadata, sys
wanted = [line.split("==") for line in open("tests/requirements.txt").read().split()]
try:
    sys.exit(any(importlib.metadata.version(name) != version for name, version in wanted))
except importlib.metadata.PackageNotFoundError:
    sys.exit(1)
PYTHON
then
    echo "tests/run.sh: installing tests/requirements.txt" >&2
    "$python" -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 # models are tiny: more threads wait for each other
if [ "${1:-}" = "--checks" ]; then
    "$python" -m ruff check .
    "$python" -m ruff format --check .
    "$python" -m mypy
    lint-imports
    exit
fi
# A worker a core, each with whole files. One process where single tests are named, or where a terminal is needed.
workers=$(getconf _NPROCESSORS_ONLN)
parallel=(-n "$((workers < 8 ? workers : 8))" --dist loadfile)
for argument in "$@"; do
    case "$argument" in
        tests/*.py* | -n* | -s | --pdb) parallel=() ;;
    esac
done
"$python" -m pytest "${parallel[@]}" "$@"
