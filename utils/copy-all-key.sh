#!/bin/sh
# The same as copy-all-keys.sh.
exec sh "$(dirname "$0")/copy-all-keys.sh" "$@"
