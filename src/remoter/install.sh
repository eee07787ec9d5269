#!/bin/sh
# Finds a Python on the other machine that can run remoter, and hands over to the installer.
#
# An `extra` of `bootstrap.sh`: evaluated there in a fresh sh below a login shell, behind the prelude.
# Given: mark and fail, nonce, and what `_install.py` puts in front: own_version, and installer, the
# text of `_installer.py`. Says `old PATH VERSION` for each Python that is too old.
# shellcheck disable=SC2154  # those values

place=$HOME/.local/share/remoter

attempt() { # COMMAND...: whether that is a Python that can run remoter; its path in python
    found=$("$@" -c 'import sys
print("%d.%d.%d %s" % (tuple(sys.version_info[:3]) + (sys.executable,)))' </dev/null 2>/dev/null) || return 1
    found=$(printf '%s\n' "$found" | tail -n 1)
    python=${found#* } found=${found%% *}
    case $found in
    3.1[1-9].* | 3.[2-9][0-9].*) return 0 ;;
    [0-9]*) mark old "$python" "$found" ;;
    esac
    return 1
}

find_python() { # first what a prelude or the user has put in front, then what is there besides
    for name in python3 python python3.14 python3.13 python3.12 python3.11; do
        command -v "$name" >/dev/null && attempt "$name" && return
    done
    if [ -n "$uv" ]; then
        found=$("$uv" python find '>=3.11' </dev/null 2>/dev/null) && attempt "$found" && return
    fi
    for found in "$HOME"/miniforge3 "$HOME"/miniconda3 "$HOME"/anaconda3; do
        [ -x "$found/bin/python3" ] && attempt "$found/bin/python3" && return
    done
    [ -n "$uv" ] && fetch_python
}

fetch_python() { # into the same directory as all the rest
    is_new='' is_bare=''
    [ -e "$place/python" ] || is_new=1
    [ -e "$HOME/.local/share" ] || is_bare=1
    mark step "fetching Python 3.12 with uv"
    if said=$(use_uv install 3.12 2>&1) &&
        found=$(use_uv find --python-preference only-managed 3.12 2>/dev/null) &&
        attempt "$found"; then
        return 0
    fi
    [ -z "$is_new" ] || rm -rf "$place/python"
    rmdir "$place" 2>/dev/null
    [ -z "$is_bare" ] || rmdir "$HOME/.local/share" "$HOME/.local" 2>/dev/null
    return 1
}

use_uv() {
    UV_PYTHON_INSTALL_DIR=$place/python UV_PYTHON_INSTALL_BIN=0 "$uv" python "$@" </dev/null
}

find_uv() {
    for uv in "$(command -v uv)" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv"; do
        [ -x "$uv" ] && "$uv" --version </dev/null >/dev/null 2>&1 && return
    done
    uv=
}

said=
find_uv
find_python || fail python 127 "$said"
exec "$python" -I -c "$installer" "$nonce" "$own_version" "$uv"
