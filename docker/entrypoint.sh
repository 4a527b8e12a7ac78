#!/bin/sh
# What `docker run IMAGE ...` runs: coar-dist with these arguments, or the command that they are.
#
#   docker run IMAGE                               coar-dist
#   docker run IMAGE experiment=digits_vit         coar-dist experiment=digits_vit (options, overrides, subcommands)
#   docker run IMAGE ray start --head --block      ray (or coar-dist, python, bash, ...)
set -eu

case "${1:-}" in
    "" | -* | +* | "~"* | *=* | inspect | compare | import-research | export-research) set -- coar-dist "$@" ;;
esac
exec "$@"
