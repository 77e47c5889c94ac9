# Sourced by demo and test: makes a virtual environment with fluxmpi in it, or reuses one that is right already.

# The commands behave the same whatever the caller has set for pip or Python.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1

say() { printf '%s\n' "$*" >&2; }
die() { say "$(basename "$0"): $*"; exit 1; }

# python_for_us: the newest python3 that will do, or what PYTHON names
python_for_us() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { command -v "$candidate"; return; }
    done
    die "needs Python 3.11 or newer (found: $(python3 --version 2>&1 || true)); PYTHON=... names another"
}

# environment DIR EXTRAS: DIR has fluxmpi (editable, from this checkout) with these extras.
# It is right already if it was made from the same pyproject.toml, by the same Python, for the same place.
environment() {
    local dir=$1 extras=$2 python want log
    python=$(python_for_us)
    want=$({ echo "$PWD $dir $extras"; "$python" -VV; cat pyproject.toml; } | cksum)
    if [ "$(cat "$dir/fluxmpi.stamp" 2>/dev/null)" = "$want" ] && "$dir/bin/python" -c 'import fluxmpi' 2>/dev/null; then
        return 0
    fi
    say "Installing fluxmpi[$extras] into ${dir#"$PWD/"} (once; half a minute, or as long as the downloads take) ..."
    log=$(mktemp)
    if ! { "$python" -m venv --clear "$dir" && "$dir/bin/python" -m pip install --editable ".[$extras]"; } >"$log" 2>&1; then
        tail -n 25 "$log" >&2
        rm -f "$log"
        die "could not make $dir (on Debian, 'python3 -m venv' needs the package python3-venv)"
    fi
    rm -f "$log"
    printf '%s\n' "$want" >"$dir/fluxmpi.stamp"
}
