# Sourced by every launcher: afterwards `python` has the needed packages. Nothing is installed where they are there already.
# Keeps the active environment (a GPU box keeps its own torch); else makes .venv here and installs requirements.txt, once.

_has_packages() {
    "$1" - <<'PYTHON' 2>/dev/null
import importlib.util, sys
needed = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "toml", "tensorboard", "PIL", "tqdm", "peft",
          "sklearn", "matplotlib")
sys.exit(any(importlib.util.find_spec(name) is None for name in needed) or sys.version_info < (3, 11))
PYTHON
}

_setup() {
    local candidate base=""
    for candidate in python python3; do
        if command -v "$candidate" >/dev/null && _has_packages "$candidate"; then
            [ "$candidate" = python ] || python() { command python3 "$@"; }
            return 0
        fi
    done
    if [ ! -x .venv/bin/python ]; then
        for candidate in python3 python3.13 python3.12 python3.11 python; do
            if command -v "$candidate" >/dev/null \
                && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                base=$candidate
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "setup.sh: needs Python 3.11 or newer; install it, or activate an environment that has it" >&2
            return 1
        fi
        echo "setup.sh: making .venv ($("$base" --version))" >&2
        "$base" -m venv .venv
    fi
    if ! _has_packages .venv/bin/python; then
        echo "setup.sh: installing requirements.txt into .venv (once; some minutes)" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}

_setup
