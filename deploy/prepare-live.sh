#!/bin/sh
# Rule: give BCC what it looks for on this machine and nothing else. It installs no package, replaces no link that a
# package made and unmounts nothing; a machine that has all of it is left as it is. Each line it prints is one thing
# that it did or left. Run again, it finds everything in place.
#
# Exit status: 0 ready, 3 this machine cannot do it (as rke2-flows has it).
set -eu

RELEASE=$(uname -r)
MODULES=/lib/modules/$RELEASE
IN_KERNEL_HEADERS=/sys/kernel/kheaders.tar.xz

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'prepare-live: %s\n' "$*" >&2
    exit 3
}

# The newest other kernel's folder under /lib/modules whose "build" leads to headers of a Debian package.
other_headers() {
    for build in /lib/modules/*/build; do
        [ "$build" != "$MODULES/build" ] || continue
        [ -e "$build/include/generated/autoconf.h" ] || continue
        case $(readlink -f "$build") in
            /usr/src/linux-headers-*) printf '%s\n' "${build%/build}" ;;
        esac
    done | sort -V | tail -n 1
}

# A link that this script made on an earlier day, whose headers an upgrade has taken away since: no package links the
# running kernel's folder to another kernel's headers.
is_stale() {
    if [ ! -L "$1" ] || [ -e "$1" ]; then
        return 1
    fi
    case $(readlink "$1") in
        *"$RELEASE"*) return 1 ;;
        /usr/src/linux-headers-*) return 0 ;;
    esac
    return 1
}

link_to() {
    target=$(readlink -f "$1")
    if is_stale "$2"; then
        rm "$2"
        say "removed $2: what it led to is gone"
    fi
    ln -s "$target" "$2" || fail "cannot make $2; is /lib/modules writable?"
    say "linked  $2 -> $target"
}

prepare_headers() {
    if [ -d "$MODULES/build/include" ]; then
        say "left    $MODULES/build: $(readlink -f "$MODULES/build")"
        return
    fi
    if [ -e "$IN_KERNEL_HEADERS" ]; then
        say "left    $MODULES/build: this kernel carries its headers in $IN_KERNEL_HEADERS"
        return
    fi
    if [ -e "$MODULES/build" ]; then
        fail "$MODULES/build is there but holds no headers; remove it, or install the headers of $RELEASE"
    fi
    if [ -L "$MODULES/build" ] && ! is_stale "$MODULES/build"; then
        fail "$MODULES/build leads to $(readlink "$MODULES/build"), which is absent; install that package"
    fi
    other=$(other_headers)
    [ -n "$other" ] || fail "no kernel headers are installed; on Debian: apt-get install linux-headers-$(dpkg \
        --print-architecture 2>/dev/null || echo amd64)"
    mkdir -p "$MODULES" || fail "cannot make $MODULES; is /lib/modules writable?"
    # "build" last: its presence says that the work is done.
    if [ -e "$MODULES/source" ]; then
        say "left    $MODULES/source: $(readlink -f "$MODULES/source")"
    elif [ -d "$other/source" ]; then
        link_to "$other/source" "$MODULES/source"
    fi
    link_to "$other/build" "$MODULES/build"
}

# is_mounted TYPE PLACE
is_mounted() {
    while read -r _ place type _; do
        [ "$place" = "$2" ] && [ "$type" = "$1" ] && return 0
    done </proc/mounts
    return 1
}

# prepare_mount TYPE PLACE
prepare_mount() {
    if is_mounted "$1" "$2"; then
        say "left    $2: $1 is mounted"
    elif [ ! -d "$2" ]; then
        fail "$2 is absent: this kernel has no $1, or /sys is not mounted"
    else
        mount -t "$1" "$1" "$2" || fail "cannot mount $1 on $2; a container needs CAP_SYS_ADMIN, or the host's $2"
        say "mounted $2: $1"
    fi
}

[ "$(uname -s)" = Linux ] || fail "live capture needs Linux, this is $(uname -s)"
[ "$(id -u)" = 0 ] || fail "links under /lib/modules and mounts need root; run it with sudo"
prepare_headers
prepare_mount debugfs /sys/kernel/debug
prepare_mount tracefs /sys/kernel/tracing
prepare_mount bpf /sys/fs/bpf
