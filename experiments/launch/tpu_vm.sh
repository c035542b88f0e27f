#!/bin/bash
# A binary of jaxdiff on every host of a Cloud TPU slice, from a machine with gcloud.
#
#     export TPU=my-slice ZONE=us-east5-a NFS=10.0.0.2:/share
#     gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type=v5p-128 --version=v2-alpha-tpuv5
#     experiments/launch/tpu_vm.sh setup
#     experiments/launch/tpu_vm.sh run study --model=/data/Wan2.1-T2V-14B-Diffusers --dataset=intphys --data_dir=/data/IntPhys \
#         --workdir=/data/runs/intphys
#
# `setup` copies this checkout to every host, installs it, and mounts an NFS share (Filestore, say) at /data, where checkpoints,
# clips and the workdir are: all hosts must see one folder, in which renaming is atomic. `run` starts the binary on all hosts at
# once with --distributed=auto. A slice that was preempted is made again with the same three commands; the run goes on where it
# stopped.

set -euo pipefail

usage() {
    echo "usage: TPU=NAME ZONE=ZONE [NFS=HOST:/SHARE] $0 setup | run BINARY --flag=value ..." >&2
    exit 1
}

[ -n "${TPU:-}" ] && [ -n "${ZONE:-}" ] && [ "$#" -ge 1 ] || usage

everywhere() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

case $1 in
setup)
    [ -n "${NFS:-}" ] || usage
    here=$(cd "$(dirname "$0")/../.." && pwd)
    archive=$(mktemp -t jaxdiff.XXXXXX)
    git -C "$here" archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:jaxdiff.tar.gz" --zone="$ZONE" --worker=all
    rm "$archive"
    everywhere "set -e
        mkdir -p jaxdiff && tar -xzf jaxdiff.tar.gz -C jaxdiff
        python3 -m venv jaxdiff/.venv && jaxdiff/.venv/bin/pip install --quiet -e './jaxdiff[tpu]'
        sudo apt-get update -q && sudo apt-get install -qy nfs-common && sudo mkdir -p /data
        mountpoint -q /data || sudo mount -t nfs '$NFS' /data"
    ;;
run)
    [ "$#" -ge 2 ] || usage
    shift
    binary=$1
    shift
    flags=$(printf ' %q' "$@")
    everywhere "cd jaxdiff && .venv/bin/python -m experiments.$binary --distributed=auto$flags"
    ;;
*) usage ;;
esac
