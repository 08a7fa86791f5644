#!/usr/bin/env bash
# Makes .venv with everything that the demo, the tests and the checks need, then the file READY ($1), which `make` compares with
# pyproject.toml, constraints.txt and this script. Safe to interrupt: a half-made .venv is thrown away by the next run.
#
# Environment: PYTHON, the interpreter to build on (python3). pip's own configuration decides where packages come from.
set -euo pipefail
cd "$(dirname "$0")/.."
ready=$1
python=${PYTHON:-python3}
incomplete=.venv/.incomplete
debian_headers=/usr/include/x86_64-linux-gnu # tiff.h is there, where pillow-simd's build looks only when told
headers=(libjpeg62-turbo-dev zlib1g-dev libwebp-dev libtiff-dev libopenjp2-7-dev libfreetype-dev liblcms2-dev)

say() { printf 'setup: %s\n' "$*" >&2; }

# Two runs at once would pull the floor from under each other.
exec 9<scripts/setup.sh
if command -v flock >/dev/null; then flock 9; fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "'$python' is not Python 3.11 or later; name one that is: make setup PYTHON=/path/to/python3.11"
    exit 1
fi

# --- system packages -------------------------------------------------------------------------------------------------

# pillow-simd's fast paths are x86-64 with AVX2; elsewhere Pillow is the better choice and needs no compiler.
wants_simd() { [ "$(uname -m)" = x86_64 ] && grep -qsw avx2 /proc/cpuinfo; }

missing_packages() {
    "$python" -c 'import ensurepip' 2>/dev/null || echo python3-venv
    if wants_simd; then
        [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || echo python3-dev
        command -v cc >/dev/null || printf '%s\n' gcc libc6-dev
        for package in "${headers[@]}"; do
            dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || echo "$package"
        done
    fi
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
    mapfile -t missing < <(missing_packages)
    if [ ${#missing[@]} -gt 0 ]; then
        if [ "$(id -u)" -eq 0 ]; then
            say "installing system packages: ${missing[*]}"
            export DEBIAN_FRONTEND=noninteractive
            if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
                say "apt-get did not install them; going on without"
            fi
        else
            say "for all features, have an administrator run: apt-get install --no-install-recommends ${missing[*]}"
        fi
    fi
fi

# --- the virtual environment -----------------------------------------------------------------------------------------

if [ -e "$incomplete" ]; then
    say "the last set-up was interrupted; starting over"
    rm -rf .venv
fi
# An environment that was whole stays when pip merely fails (no network, say), since pip takes back what it began. A signal
# leaves the mark in place.
was_whole=$([ -e "$ready" ] && echo yes || echo no)
forgive_failure() {
    if [ $? -ne 0 ] && [ "$was_whole" = yes ]; then rm -f "$incomplete"; fi
}
trap forgive_failure EXIT
trap 'was_whole=no; exit 130' INT TERM HUP
mkdir -p .venv
touch "$incomplete"

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
install() { pip install -qq --constraint constraints.txt "$@"; }

if ! { [ -x .venv/bin/python ] && pip --version >/dev/null 2>&1; }; then
    if ! "$python" -m venv .venv; then
        say "'$python -m venv' fails; on Debian the package python3-venv brings it"
        exit 1
    fi
fi

# torch goes first and by its pinned release alone: asked for together with others, or by one of them, pip may prefer a newer build
# with several GB of CUDA libraries.
say "installing the pinned packages into .venv (minutes, the first time)"
install torch
install setuptools wheel
install --no-build-isolation --editable '.[dev,torch,s3,redis,webdataset]'

# --- Pillow or pillow-simd: last, since other packages pull Pillow over it ---------------------------------------------

# Prints which of the two distributions are installed; both unpack into PIL/, so only a single one is sound.
installed_pillows() {
    .venv/bin/python - <<'PYTHON'
from importlib.metadata import PackageNotFoundError, version

for name in ("pillow", "pillow-simd"):
    try:
        print(name, version(name), sep="==")
    except PackageNotFoundError:
        pass
PYTHON
}

pinned() { grep -x "$1==[^ ]*" constraints.txt; }

simd_is_complete() {
    [ "$(installed_pillows)" = "$(pinned pillow-simd)" ] &&
        .venv/bin/python -c 'import sys; from PIL import features; sys.exit(not (features.check("webp") and features.check("jpg")))'
}

# The wheel is built before anything is removed. `enable` makes a missing library an error, where the default leaves the format out;
# --no-cache-dir because pip's cache of built wheels does not know which compiler flags and libraries a wheel was built with.
install_simd() {
    local wheels log reason
    wheels=.venv/.wheels
    log=$wheels/log
    rm -rf "$wheels"
    mkdir "$wheels"
    say "compiling $(pinned pillow-simd) for AVX2"
    if CC="${CC:-cc} -mavx2" C_INCLUDE_PATH="$debian_headers${C_INCLUDE_PATH:+:$C_INCLUDE_PATH}" \
        pip wheel --quiet --no-deps --no-cache-dir --no-binary pillow-simd \
        --config-settings jpeg=enable --config-settings zlib=enable --config-settings webp=enable \
        --wheel-dir "$wheels" "$(pinned pillow-simd)" >"$log" 2>&1; then
        pip uninstall -qq --yes pillow pillow-simd
        pip install -qq --no-deps --no-index "$wheels"/*.whl
        rm -rf "$wheels"
    else
        reason=$(grep -m 1 -iE 'could not be found|failed:|command .* failed' "$log" || tail -n 1 "$log")
        say "pillow-simd does not compile here, so the slower Pillow decodes; the reason: $reason"
        rm -rf "$wheels"
        return 1
    fi
}

install_pillow() {
    if [ "$(installed_pillows)" != "$(pinned pillow)" ]; then
        pip uninstall -qq --yes pillow pillow-simd
        install --no-deps pillow
    fi
}

if ! { wants_simd && { simd_is_complete || install_simd; }; }; then
    install_pillow
fi

rm -f "$incomplete"
touch "$ready"
say "ready: .venv with $(installed_pillows), $(.venv/bin/python --version)"
