#!/usr/bin/env bash
# A browser for tests/report/test_browser.py: names the one that is there, or installs Debian's Chromium where this user
# may. Without a browser those tests skip and say so, so this ends with 0 whatever it finds.
set -uo pipefail

found() {
    local name
    if [ -n "${MMREASON_BROWSER:-}" ]; then
        command -v "$MMREASON_BROWSER"
        return
    fi
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" && return
    done
    return 1
}

without() {
    echo "browser: $1; the tests of the report in a browser will skip"
    echo "browser: install chromium or google-chrome, or set MMREASON_BROWSER to the program"
    exit 0
}

if browser=$(found); then
    echo "browser: $browser"
    exit 0
fi
[ -z "${MMREASON_BROWSER:-}" ] || without "MMREASON_BROWSER=$MMREASON_BROWSER is no program"
command -v apt-get > /dev/null || without "none found, and there is no apt-get to install one with"
[ "$(id -u)" = 0 ] || without "none found, and only root may install one"

echo "browser: none found, installing the packages chromium, fonts-dejavu-core and fonts-noto-cjk with apt-get"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { timeout 300 apt-get update \
    && timeout 900 apt-get install -y --no-install-recommends chromium fonts-dejavu-core fonts-noto-cjk; } > "$log" 2>&1; then
    tail -n 3 "$log"
    without "apt-get could not install one"
fi
browser=$(found) || without "none found after the installation"
# Some distributions' package is only a pointer to a store that containers don't have.
"$browser" --version > /dev/null 2>&1 || without "$browser was installed but doesn't start"
echo "browser: $browser"
