# Sourced by demo and test: create a virtual environment with fluxmpi, or reuse one that is up to date.

# Settings of the caller for pip and Python must not change what the commands do.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# find_python: print the first Python that is new enough; PYTHON names another
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { command -v "$candidate"; return; }
    done
    die "Python 3.11 or newer is required (python3 is $(python3 --version 2>&1 || true)): set PYTHON to another one"
}

# environment DIR EXTRAS: install fluxmpi (editable, from this checkout) with these extras into DIR.
# DIR is up to date if it was made from the same pyproject.toml, by the same Python, at the same path.
environment() {
    local dir=$1 extras=$2 python want log
    python=$(find_python)
    want=$({ echo "$PWD $dir $extras"; "$python" -VV; cat pyproject.toml; } | cksum)
    if [ "$(cat "$dir/fluxmpi.stamp" 2>/dev/null)" = "$want" ] && "$dir/bin/python" -c 'import fluxmpi' 2>/dev/null; then
        return 0
    fi
    say "Installing fluxmpi[$extras] into ${dir#"$PWD/"} (once; about half a minute, depending on the downloads) ..."
    log=$(mktemp)
    if ! { "$python" -m venv --clear "$dir" && "$dir/bin/python" -m pip install --editable ".[$extras]"; } >"$log" 2>&1; then
        tail -n 25 "$log" >&2
        rm -f "$log"
        die "cannot create $dir: see above (on Debian, install python3-venv)"
    fi
    rm -f "$log"
    printf '%s\n' "$want" >"$dir/fluxmpi.stamp"
}
