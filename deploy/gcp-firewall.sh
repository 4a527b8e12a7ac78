#!/usr/bin/env bash
# Once per project: who reaches the nodes of deploy/gcp.yaml, which carry the network tag coar-dist.
#   deploy/gcp-firewall.sh 203.0.113.7/32    # the addresses from which `ray up` and `ray dashboard` come by SSH
# The default network lets SSH come from anywhere. The lowest priority wins: these rules come before that one's 65534.
set -euo pipefail
ssh_from=${1:?the addresses that may come by SSH, as a CIDR block}
project=${2:-$(gcloud config get-value project)}

# rule NAME PRIORITY OPTION...
rule() {
    gcloud compute firewall-rules create "coar-dist-$1" --project="$project" --network=default --direction=INGRESS \
        --target-tags=coar-dist --priority="$2" "${@:3}"
}

rule nothing-else 1000 --action=DENY --rules=all --source-ranges=0.0.0.0/0
rule ssh 900 --action=ALLOW --rules=tcp:22 --source-ranges="$ssh_from"
rule among-nodes 900 --action=ALLOW --rules=all --source-tags=coar-dist
