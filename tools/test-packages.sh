#!/bin/sh
# Installs the programs that tests and benchmarks use and Anvil itself does not: the reverse proxies, curl, h2load, ip, openssl, Prometheus
# and valgrind. Never fails: where they cannot be installed, it says what is missing. The tests that need it are skipped, or fail where
# ANVIL_STRICT=1 is set.
set -u

# Debian keeps nginx where an ordinary user's PATH does not reach.
PATH=$PATH:/usr/sbin:/sbin
missing=""
command -v caddy >/dev/null 2>&1 || missing="$missing caddy"
command -v nginx >/dev/null 2>&1 || missing="$missing nginx"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
command -v h2load >/dev/null 2>&1 || missing="$missing nghttp2-client"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
command -v openssl >/dev/null 2>&1 || missing="$missing openssl"
command -v promtool >/dev/null 2>&1 || missing="$missing prometheus"
{ command -v valgrind >/dev/null 2>&1 && [ -e /usr/include/valgrind/callgrind.h ]; } || missing="$missing valgrind"
[ -n "$missing" ] || exit 0

skip() {
    echo "Not installed, so what needs it is left out of tests and benchmarks:$missing ($1)" >&2
    exit 0
}
command -v apt-get >/dev/null 2>&1 || skip "these are Debian's names"
as_root() { "$@"; }
if [ "$(id -u)" != 0 ]; then
    # Not worth a question: only where sudo needs no password.
    sudo -n true 2>/dev/null || skip "run as root: apt-get install$missing"
    as_root() { sudo "$@"; }
fi

# Their packages start services, on ports 80, 443 and 9090. Debian's invoke-rc.d asks policy-rc.d first; 101 means no. One that is there
# already has its own opinion, and stays.
policy=/usr/sbin/policy-rc.d
ours=""
if [ ! -e "$policy" ]; then
    ours=yes
    trap 'as_root rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null && as_root chmod +x "$policy" || skip "$policy cannot be written"
fi
echo "Installing with apt, for tests:$missing"
as_root apt-get update -qq || skip "apt-get update failed"
# shellcheck disable=SC2086 # the list is meant to be split
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null || skip "apt-get install failed"
# Started by nobody here, and not at the next boot either, where there is a service manager.
if [ -n "$ours" ] && command -v systemctl >/dev/null 2>&1; then
    for service in caddy nginx prometheus; do
        case "$missing" in *" $service"*) as_root systemctl disable --quiet "$service" >/dev/null 2>&1 || true ;; esac
    done
fi
exit 0
