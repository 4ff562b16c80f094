#!/usr/bin/env bash
# bubblewrap for the tests of the sandbox's tier of that name: installs Debian's package where this user may. Without it
# those tests skip and say so, so this ends with 0 whatever it finds.
set -uo pipefail

without() {
    echo "bubblewrap: $1; the tests of the sandbox that need it will skip"
    exit 0
}

if command -v bwrap > /dev/null; then
    echo "bubblewrap: $(bwrap --version)"
    exit 0
fi
command -v apt-get > /dev/null || without "not installed, and there is no apt-get to install it with"
[ "$(id -u)" = 0 ] || without "not installed, and only root may install it"
export DEBIAN_FRONTEND=noninteractive
{ apt-get install -y --no-install-recommends bubblewrap || {
    timeout 300 apt-get update && timeout 300 apt-get install -y --no-install-recommends bubblewrap
}; } > /dev/null 2>&1 || without "apt-get could not install it"
echo "bubblewrap: installed $(bwrap --version)"
