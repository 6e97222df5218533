#!/bin/sh
# Compile what a container loads: it starts on a file system that nobody writes to, so what is not compiled now is
# compiled at each start. By hash and unchecked, so that no time of a file is in it.
set -eu
lib=$(echo "$1"/lib/python3*/site-packages)
"$1/bin/python3" -m compileall -q -j 0 --invalidation-mode unchecked-hash \
    -x '/kubernetes/(aio/)?client/(models|api)/' "$lib"
