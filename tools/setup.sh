#!/bin/sh
# Installs a requirement ('.' or '.[dev]') of this folder, editable, into .venv: with uv if there is one or pip can get
# one, else with pip. May be interrupted and run again.
set -eu
requirement=$1

say() { printf '%s\n' "$*" >&2; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3 python; fi
    for name in "$@"; do
        if command -v "$name" >/dev/null 2>&1 && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$name"
            return
        fi
    done
    say "MegaContext needs Python 3.11 or newer, and none was found as $*."
    say "Install it (for example: apt install python3.11 python3.11-venv, or brew install python@3.11), or name yours:"
    say "  make setup PYTHON=/path/to/python3"
    return 1
}

# Whatever is in .venv is kept if it still runs and has pip; an interrupted creation or a removed interpreter is begun anew.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    say "Making .venv with $("$python" --version)"
    if ! "$python" -m venv --clear .venv; then
        say "$python could not make a virtual environment: on Debian and Ubuntu install the package python3.11-venv."
        exit 1
    fi
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
setting() { pip config get "global.$1" 2>/dev/null || true; }

# uv reads none of pip's settings, so that they are handed on; its lists are separated by commas, pip's by spaces.
UV_FIND_LINKS=$(printf '%s' "${UV_FIND_LINKS:-$(setting find-links)}" | tr -s ' \n' ',,')
UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(setting index-url)}}
export UV_FIND_LINKS UV_DEFAULT_INDEX UV_NO_PROGRESS=${CI:+1}
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
[ -n "$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX
[ -n "$UV_NO_PROGRESS" ] || unset UV_NO_PROGRESS

uv=$(command -v uv || true)
if [ -z "$uv" ] && { [ -x .venv/bin/uv ] || pip install --quiet uv >/dev/null 2>&1; }; then
    uv=.venv/bin/uv
fi

say "Installing $requirement into .venv (torch is large: the first time takes a while)"
if [ -n "$uv" ] && "$uv" pip install --quiet --python .venv/bin/python -c constraints.txt -e "$requirement"; then
    exit 0
fi
[ -z "$uv" ] || say "uv did not manage; trying pip, which has its own settings."
pip install --quiet -c constraints.txt -e "$requirement"
