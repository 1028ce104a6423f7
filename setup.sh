# Sourced by every launcher: afterwards "$python" has the needed packages. Nothing is installed where they are there already.
# Keeps the active environment (a GPU box keeps its own torch); else makes .venv here and installs requirements.txt, once.

_missing() { # what to give to pip so that an interpreter will do
    "$1" tools/environment.py missing 2>/dev/null || echo "python>=3.11"
}

_setup() {
    local candidate lacks="" base=""
    for candidate in python python3; do
        command -v "$candidate" >/dev/null || continue
        lacks=$(_missing "$candidate")
        if [ -z "$lacks" ]; then
            python=$candidate
            return 0
        fi
    done
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo "setup.sh: the active environment lacks $lacks; .venv is used instead" >&2
        echo "setup.sh: to use the active one: python -m pip install $lacks" >&2
    fi
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
    lacks=$(_missing .venv/bin/python)
    if [ -n "$lacks" ]; then
        echo "setup.sh: installing requirements.txt into .venv (once; some minutes); it lacks $lacks" >&2
        if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt; then
            echo "setup.sh: that failed, pip says why above; .venv lacks $(_missing .venv/bin/python)" >&2
            echo "setup.sh: by hand: .venv/bin/python -m pip install -r requirements.txt" >&2
            return 1
        fi
    fi
    export PATH="$PWD/.venv/bin:$PATH"
    python=python
}

_setup
"$python" tools/environment.py versions
