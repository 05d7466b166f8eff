#!/bin/sh
# Installs the Debian or Ubuntu packages that a part of the project needs, and says which. Does nothing where they are all there.
#   demo  to build and run the offline analysis
#   live  to capture live: BCC and kernel headers
#   test  to run every test, eBPF and the lab's cluster included
set -eu

# The running kernel's headers where there are such; else any serve the eBPF programs (see prepare-live.sh), and Debian
# and Ubuntu name theirs differently.
headers() {
    arch=$(dpkg --print-architecture)
    if apt-cache show "linux-headers-$(uname -r)" >/dev/null 2>&1; then
        echo "linux-headers-$(uname -r)"
    elif [ "$(. /etc/os-release && echo "$ID")" = ubuntu ]; then
        echo linux-headers-generic
    else
        echo "linux-headers-$arch"
    fi
}

demo="python3 python3-venv python3-dev gcc libc6-dev make zlib1g-dev libzstd-dev liblz4-dev"
live="$demo python3-bpfcc $(headers)"
test="$live clang clang-format libclang-rt-dev tshark tcpdump nfdump softflowd ethtool
      iproute2 nftables openssl etcd-server etcd-client wireguard-go wireguard-tools
      bpftool iperf3 util-linux chromium zstd lz4"

case "${1:-}" in
demo) wanted=$demo ;;
live) wanted=$live ;;
test) wanted=$test ;;
*)
    echo "usage: $0 demo|live|test" >&2
    exit 2
    ;;
esac

missing=""
for name in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $name"
done
[ -n "$missing" ] || exit 0

echo "installing:$missing"
become=""
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        echo "$0: not root, and there is no sudo: install these packages as root:$missing" >&2
        exit 3
    }
    become=sudo
fi
$become apt-get update -qq
# shellcheck disable=SC2086  a list of names
$become env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
