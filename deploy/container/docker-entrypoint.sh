#!/bin/sh
# Like the entry point of haproxy's official image: options alone are haproxy's, and haproxy gets
# `-W -db`. A word that is no program is a command of bindonce.
set -e

# Whether a word names a program. `command -v` also knows words of the shell (`echo`, `exec`).
is_program() (
    set -f
    case $1 in
        */*) [ -x "$1" ]; exit ;;
    esac
    IFS=:
    for directory in $PATH; do
        if [ -f "$directory/$1" ] && [ -x "$directory/$1" ]; then
            exit 0
        fi
    done
    exit 1
)

case $1 in
    -*) set -- haproxy "$@" ;;
esac
if [ "$1" = haproxy ]; then
    shift
    set -- haproxy -W -db "$@"
elif ! is_program "$1"; then
    set -- bindonce "$@"
fi
exec "$@"
