# Sourced by ./test and ./demo: makes .venv hold this checkout and what it needs. A second run finds nothing to do
# and needs no network.

step() { printf '== %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '       %s\n' "$2" >&2
    exit 1
}

# The Debian packages that hold what building the compiled helpers takes and this machine lacks.
missing_packages() {
    command -v gcc >/dev/null || echo gcc
    command -v make >/dev/null || echo make
    [ -e /usr/include/stdlib.h ] || echo libc6-dev
    [ -e /usr/include/linux/vfio.h ] || echo linux-libc-dev
}

ensure_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        fail "missing: ${packages[*]} (Debian's names)" "install them with this system's package manager"
    [ "$(id -u)" = 0 ] || fail "missing: ${packages[*]}" "run: sudo apt-get install ${packages[*]}"
    step "installing ${packages[*]}"
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >&2 ||
        fail "could not install ${packages[*]}" "see apt-get's message above"
}

# A Python that is new enough, can make virtual environments and has its headers.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        "$candidate" - 2>/dev/null <<'EOF' && command -v "$candidate" && return 0
import ensurepip, os, sys, sysconfig, venv
have_headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
sys.exit(not (sys.version_info >= (3, 11) and have_headers))
EOF
    done
    return 1
}

ensure_python() {
    find_python && return 0
    local packages=(python3 python3-venv python3-dev)
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        step "installing ${packages[*]}"
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >&2 || true
        find_python && return 0
    fi
    fail "no Python 3.11 or newer with venv and its headers" \
        "run: sudo apt-get install ${packages[*]} (Debian 12 or newer), or name one by PYTHON=/path/to/python"
}

# What an installation depends on; where it did not change, there is nothing to install.
fingerprint() {
    {
        pwd
        echo "$1"
        .venv/bin/python -c 'import sys; print(sys.version, sys.prefix)'
        cat pyproject.toml setup.py tools/build_backend.py
        find src -name '_*.pyx' -o -name '_*.pxd' -o -name '_*.h' -o -name '_*.pxi' | LC_ALL=C sort | while read -r file; do
            echo "$file"
            cat "$file"
        done
    } | sha256sum
}

built() {
    local source
    while read -r source; do
        compgen -G "${source%.pyx}.cpython-*.so" >/dev/null || return 1
    done < <(find src -name '_*.pyx')
}

# prepare_environment dev: with the test tools; prepare_environment run: what users need.
prepare_environment() {
    local kind=$1 stamp python
    ensure_packages
    (
        # Failures are handled one by one: "set -e" has no effect left of "||".
        flock 9 || exit 1 # two runs in one checkout take turns
        if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
            python=$(ensure_python) || exit 1
            step "making .venv with $python"
            "$python" -m venv --clear .venv 9>&- || fail "could not make .venv with $python"
        fi
        # An environment for tests serves the demo too.
        for stamp in dev "$kind"; do
            if built && [ "$(cat ".venv/iolane-$stamp" 2>/dev/null)" = "$(fingerprint "$stamp")" ]; then
                exit 0
            fi
        done
        step "installing iolane and what it needs into .venv"
        rm -f .venv/iolane-*
        install "$kind" 9>&- ||
            fail "pip could not install what iolane needs (see its message above)" \
                "the first run needs a Python package index: check the network and pip's configuration"
        fingerprint "$kind" >".venv/iolane-$kind"
    ) 9>.environment.lock || exit $?
}

install() {
    local quiet=(--quiet --disable-pip-version-check)
    if [ "$1" = dev ]; then
        # Build tools into the environment, so that building again needs no network.
        .venv/bin/python -m pip install "${quiet[@]}" "setuptools>=65.5" "wheel>=0.40" "Cython>=3.0.8" &&
            .venv/bin/python -m pip install "${quiet[@]}" --no-build-isolation --editable '.[dev]'
    else
        .venv/bin/python -m pip install "${quiet[@]}" --editable .
    fi
}
