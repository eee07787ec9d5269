#!/bin/sh
# What is done on the machine that ssh leads to: finds the sessions, starts one, runs the program.
#
# `_bootstrap.py` sends this to the standard input of `/bin/sh` there, with the values in front:
# nonce, verb, name, lang, python, r, r_engine, only, prelude, stay, extra, and a function
# with_arguments that calls what it is given with the arguments behind. It is evaluated twice:
#
#   arriving    in the shell that ssh started. Finding a running session needs no more
#   logged in   in a fresh sh below a login shell, which has run the prelude
#
# In between, the login shell itself does as little as possible: it may be zsh, and its aliases,
# functions and options are the user's. What says something is `remoter:NONCE WORD REST`, a line
# of standard output; the rest is chatter. Lines that begin with `#` are not sent.
#
# What an `extra` script may use: mark, fail, finish; host, interpreter and version (of python3),
# and standard input. Nothing here may need a shell beyond POSIX. Few forks: each takes a millisecond.
# shellcheck disable=SC2154  # values and nonce come from _bootstrap.py

mark() { # WORD REST...
    printf 'remoter:%s %s\n' "$nonce" "$*"
}

tell() { # the last lines of what comes in
    command -p tail -n 40 | while IFS= read -r line || [ -n "$line" ]; do
        mark said "$line"
    done
}

fail() { # STEP CODE [TEXT]
    mark failed "$1" "$2"
    [ -z "${3-}" ] || printf '%s\n' "$3" | tell
    finish 1
}

finish() { # CODE
    mark end
    leave "$1"
}

leave() { # CODE. The shell that ssh started waits, if it shall, until nobody listens any more
    [ -z "$stay" ] || [ -n "$is_logged_in" ] || exec cat >/dev/null
    exit "$1"
}

learn_host() {
    # shellcheck disable=SC2046  # three words
    set -- $(uname -s -n -m)
    system=$1 machine=$3 host=${2%%.*}
    host=${host:-localhost}
}

# --- sessions that run ---------------------------------------------------------------------------

look_for() { # VERB. Give it `record JSON` for each live session that is wanted, and count them
    found=0
    for file in "${REMOTER_STATE_DIR:-$HOME/.local/state/remoter}"/servers/*.json; do
        [ -r "$file" ] || continue
        json=
        IFS= read -r json <"$file" || [ -n "$json" ] || continue
        read_value host || continue
        its_host=$value
        read_value name || continue
        is_meant || continue
        if [ "$its_host" != "$host" ]; then
            [ -z "$tell_others" ] || mark other "$its_host" "$value"
        elif is_alive; then
            found=$((found + 1))
            session=$value session_directory=$directory session_pid=$pid
            "$1" record "$json"
        fi
    done
    tell_others=
}

hex='[0-9a-f][0-9a-f]'

is_meant() { # the session of $json, whose name is $value
    if [ -n "$name" ]; then
        [ "$value" = "$name" ]
        return
    fi
    # shellcheck disable=SC2254  # it is a pattern
    case $value in
    private-$hex$hex$hex$hex) return 1 ;; # a program's own
    esac
    [ -n "$only" ] || return 0
    its_name=$value
    read_value lang || value=python
    its_lang=$value value=$its_name
    [ "$its_lang" = "$only" ]
}

read_value() { # KEY: its text in $json. Quotes inside of a text are escaped: `"KEY":` is nowhere else
    value=${json#*\""$1"\":}
    value=${value# } # there is a space if the keeper wrote it
    case $value in
    \"*) value=${value#\"} ;;
    *) return 1 ;;
    esac
    case ${value%%\"*} in
    *\\*)
        value=$(printf '%s\n' "$json" | LC_ALL=C command -p sed \
            -e 's/^.*"'"$1"'": *"\([^"\\]*\(\\.[^"\\]*\)*\)".*$/\1/' -e 's/\\\(["\\/]\)/\1/g')
        ;;
    *) value=${value%%\"*} ;;
    esac
}

is_alive() { # the session of $json
    its_name=$value
    read_value directory || return
    directory=$value value=$its_name
    pid=${json#*\"pid\":}
    pid=${pid# }
    pid=${pid%%[!0-9]*}
    # A pid may have been used again; a lock is held by the living. It is not found if `\u` is in its path.
    case $directory in
    *\\u*) ;;
    *)
        [ -f "$directory/lock" ] || return
        if command -v flock >/dev/null; then
            flock -n -s 8 8<"$directory/lock" 2>/dev/null
            case $? in
            0) return 1 ;;
            1) return 0 ;;
            esac
        fi
        ;;
    esac
    [ "${pid:-0}" -gt 1 ] && kill -0 "$pid" 2>/dev/null || return
    case $(ps -ww -o args= -p "$pid" 2>/dev/null) in
    '' | *_keeper*) ;; # without `ps`, it may be
    *) return 1 ;;
    esac
}

# --- arriving ------------------------------------------------------------------------------------

arrive() {
    learn_host
    printf '\n' # whatever was printed before may have no end
    mark hello "$system" "$machine" "$host"
    cd "$HOME" 2>/dev/null || : # there may be none; then it is where ssh put us
    case $verb in
    find)
        tell_others=1
        look_for mark
        finish 0
        ;;
    start)
        tell_others=1
        look_for mark
        [ "$found" -eq 0 ] || finish 0
        ;;
    bridge)
        look_for :
        [ "$found" -ne 1 ] || bridge_by_keeper
        ;;
    esac
    log_in
}

bridge_by_keeper() { # the keeper's command line tells the interpreter, and where the package is
    [ -r "/proc/$session_pid/cmdline" ] || return 0
    set -f
    IFS='
'
    # shellcheck disable=SC2046  # words end with lines now
    set -- $(command -p tr '\0' '\n' <"/proc/$session_pid/cmdline")
    unset IFS
    set +f
    [ "$#:${7-}" = "7:$session" ] && [ -x "$1" ] && [ -r "$6/_bridge.py" ] || return 0
    mark raw
    exec "$1" -I -S "$6/_bridge.py" "$session_directory/door.sock"
}

log_in() { # go on in a login shell
    case ${SHELL##*/} in
    bash | zsh | ksh | ksh93 | mksh | dash | ash | sh) login=$SHELL ;;
    *) login=$(command -v bash) ;;
    esac
    [ -f "$login" ] && [ -x "$login" ] || login=/bin/sh
    mark login "$login"
    make_note || fail login 1 "cannot make a file in /tmp"
    export REMOTER_BOOTSTRAP="$text" REMOTER_BOOTSTRAP_PRELUDE="$prelude" REMOTER_BOOTSTRAP_NONCE="$nonce" \
        REMOTER_BOOTSTRAP_NOTE="$note" REMOTER_BOOTSTRAP_PATH="$PATH" REMOTER_BOOTSTRAP_LOGIN="$in_login_shell"
    ( # no `{`: a bash that reads its script from standard input would not survive the redirection
        case $stay:$verb in
        1:start | 1:look) watch <&9 >/dev/null 2>&1 9<&- & ;;
        esac
        # Login files that read get the empty lines; those that start another shell, the last two.
        printf '%s\n' '' '' '' '' '' '' '' '' '' '' '' '' '' '' '' '' "$in_any_shell" "exec /bin/sh -c '$in_any_shell'" |
            "$login" -l -c "$in_any_shell"
    ) 9<&0
    code=$?
    if [ -f "$note" ]; then
        printf '\n'
        step=login
        [ ! -s "$note" ] || step=prelude
        mark failed "$step" "$code"
        sed 1d "$note" | tell
        rm -f "$note"
        finish 1
    fi
    leave "$code"
}

make_note() { # a file that is there until the login shell is behind us; the prelude prints into it
    for place in "${TMPDIR:-/tmp}" /tmp "$HOME"; do
        note=$place/remoter-$nonce
        (umask 077 && set -C && : >"$note") 2>/dev/null && return
    done
    return 1
}

watch() { # nobody listens any more: end a login that hangs
    cat
    [ -f "$note" ] || return 0
    rm -f "$note"
    kill -TERM "-$$"
}

# shellcheck disable=SC2016  # for other shells
in_any_shell='eval "$REMOTER_BOOTSTRAP_LOGIN"'
# shellcheck disable=SC2016
in_login_shell='exec /bin/sh -c "eval \"\$REMOTER_BOOTSTRAP\"" sh logged-in'
# shellcheck disable=SC2016
[ -z "$prelude" ] || in_login_shell='
remoter_text=$REMOTER_BOOTSTRAP
remoter_prelude=$REMOTER_BOOTSTRAP_PRELUDE
remoter_note=$REMOTER_BOOTSTRAP_NOTE
remoter_path=$REMOTER_BOOTSTRAP_PATH
printf "\nremoter:%s prelude\n" "$REMOTER_BOOTSTRAP_NONCE"
printf "prelude\n" >>"$remoter_note"
unset REMOTER_BOOTSTRAP REMOTER_BOOTSTRAP_PRELUDE REMOTER_BOOTSTRAP_NONCE
unset REMOTER_BOOTSTRAP_NOTE REMOTER_BOOTSTRAP_PATH REMOTER_BOOTSTRAP_LOGIN
{ eval "$remoter_prelude"; } </dev/null >>"$remoter_note" 2>&1
{ remoter_code=$?; set +xv; } 2>/dev/null
[ "$remoter_code" = 0 ] || exit "$remoter_code"
export REMOTER_BOOTSTRAP="$remoter_text" REMOTER_BOOTSTRAP_NOTE="$remoter_note" REMOTER_BOOTSTRAP_PATH="$remoter_path"
'$in_login_shell

# --- logged in -----------------------------------------------------------------------------------

go_on() {
    command -p rm -f "$REMOTER_BOOTSTRAP_NOTE"
    first_path=$REMOTER_BOOTSTRAP_PATH
    unset REMOTER_BOOTSTRAP REMOTER_BOOTSTRAP_PRELUDE REMOTER_BOOTSTRAP_NONCE
    unset REMOTER_BOOTSTRAP_NOTE REMOTER_BOOTSTRAP_PATH REMOTER_BOOTSTRAP_LOGIN
    learn_host
    printf '\n'
    case $verb in
    start) start ;;
    look) look ;;
    run)
        find_program || miss_program
        exec <&9 9<&-
        mark raw
        with_arguments use
        ;;
    bridge)
        look_for :
        [ "$found" -eq 1 ] || fail session "$found"
        find_program || miss_program
        exec <&9 9<&-
        mark raw
        use bridge "$session"
        ;;
    install)
        find_interpreter && mark python "$interpreter" "$version"
        exec <&9 9<&-
        eval "$extra"
        finish 0
        ;;
    esac
}

find_program() { # sets program and module, for `use`
    module=
    for program in "$HOME/.local/share/remoter/bin/remoter" "$(find_path remoter)" "$HOME/.local/bin/remoter"; do
        [ -f "$program" ] && [ -x "$program" ] && return
    done
    # -P: a directory `remoter` in the home is no program
    find_interpreter && "$interpreter" -P -m remoter --version </dev/null >/dev/null 2>&1 || return
    program=$interpreter module=1
}

find_path() { # NAME: as the login shell finds it; else as the user's own shell does, which may be fish
    command -v "$1" || (PATH=$first_path && command -v "$1")
}

find_interpreter() { # sets interpreter and version
    interpreter=$(find_path python3) && version=$("$interpreter" -V 2>/dev/null </dev/null) || return
    version=${version#Python }
    [ -n "$version" ]
}

miss_program() {
    mark failed remoter 127
    find_interpreter && mark said python "$interpreter" "$version"
    finish 1
}

use() { # ARGUMENTS: the program, in the place of this shell
    [ -z "$module" ] || exec "$program" -P -m remoter "$@"
    exec "$program" "$@"
}

start() {
    look_for mark # variables may differ here
    [ "$found" -eq 0 ] || finish 0
    find_program || miss_program
    [ -n "$name" ] || choose_name
    mark starting "$name"
    set -- server --background --json "--name=$name"
    [ "$lang:$only" = python: ] || set -- "$@" "--lang=$lang"
    [ -z "$python" ] || set -- "$@" "--python=$python"
    [ -z "$r" ] || set -- "$@" "--r=$r"
    [ -z "$r_engine" ] || set -- "$@" "--r-engine=$r_engine"
    for attempt in 1 2 3 4 5 6 7 8; do
        said=$(trap '' HUP && use "$@" </dev/null 2>&1 9<&-)
        code=$?
        case $code:$said in
        0:* | *'[name-taken]'*) ;; # somebody else starts it just now, or it ends just now
        *) fail start "$code" "$said" ;;
        esac
        await_record && finish 0
        [ "$code" != 0 ] || break
        # Whoever lists sessions has those write their connection file again that have lost it.
        [ "$attempt" != 1 ] || (use ls) </dev/null >/dev/null 2>&1 9<&-
    done
    fail start 1 "error: session \`$name\` runs, but its connection file is not where it should be   [start]"
}

choose_name() { # the first that no session has: one of another language may be `main`
    name=main number=1
    while look_for : && [ "$found" -ne 0 ]; do
        number=$((number + 1))
        name=main-$number
    done
}

await_record() { # a second long
    for moment in 1 2 3 4 5 6 7 8 9 10; do
        look_for mark
        [ "$found" -eq 0 ] || return 0
        [ "$moment" = 10 ] || sleep 0.1 2>/dev/null || sleep 1
    done
    return 1
}

look() {
    mark shell "${SHELL-}"
    find_interpreter && mark python "$interpreter" "$version"
    if find_program; then
        version=$(use --version 2>/dev/null </dev/null 9<&-)
        version=${version##* }
        mark program "$program${module:+ -m remoter}" "${version:-unknown}"
    fi
    tell_others=1
    look_for mark
    look_for_r
    finish 0
}

look_for_r() { # last, for it may hang
    r=$(find_path "${REMOTER_R:-R}") && home=$(in_time "$r" RHOME) && version=$(in_time "$r" --version) || return
    case $version in
    *'R version '*) version=${version#*R version } && version=${version%%[!0-9.]*} ;;
    *) version=devel ;;
    esac
    mark r "$r" "$version"
    mark home "$home"
    for library in "$home/lib/libR.so" "$home/lib/libR.dylib"; do
        [ ! -f "$library" ] || mark library "$library"
    done
}

in_time() { # COMMAND...
    if command -v timeout >/dev/null; then
        timeout 5 "$@" </dev/null 2>/dev/null 9<&-
    else
        "$@" </dev/null 2>/dev/null 9<&-
    fi
}

tell_others=
is_logged_in=${1-}
if [ -n "$is_logged_in" ]; then go_on; else arrive; fi
