#!/bin/sh
# Like the entry point of haproxy's official image: options alone are haproxy's, and haproxy gets
# `-W -db`. A word that is no program is a command of bindonce.
set -e
case $1 in
    -*) set -- haproxy "$@" ;;
esac
if [ "$1" = haproxy ]; then
    shift
    set -- haproxy -W -db "$@"
elif ! [ -x "$(command -v -- "$1")" ]; then
    set -- bindonce "$@"
fi
exec "$@"
