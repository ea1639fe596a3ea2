# Installs Debian packages without starting what they bring. Usage: sh -c "$(cat install.sh)" sh PACKAGE… -- SERVICE…
set -eu
packages=
while [ "$1" != -- ]; do
    packages="$packages $1"
    shift
done
shift

# Debian's way to say that a package must not start its services. One that is there already is the administrator's.
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
    echo "$policy is there already and decides whether the new services are started"
else
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
# Words, one for each package.
# shellcheck disable=SC2086
apt-get install --quiet=2 --yes --no-install-recommends $packages

# Nor at the next boot.
if command -v systemctl >/dev/null; then
    for service; do
        systemctl disable --quiet "$service" 2>/dev/null || true
    done
fi
