#!/bin/sh
# A container in which Ray runs is healthy while Ray's agent finds its raylet healthy; any other, while its command runs.
# A cluster started with another --dashboard-agent-listen-port needs `docker run --no-healthcheck`.
set -eu

if readlink /proc/[0-9]*/exe 2> /dev/null | grep -q '/raylet$'; then
    wget -q -t 1 -T 3 -O /dev/null http://127.0.0.1:52365/api/local_raylet_healthz || exit 1
fi
