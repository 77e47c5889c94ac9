#!/usr/bin/env bash
#
# install-debian.sh - install the Debian packages that testbed.sh needs, for the tests under Slurm.
#
#   install-debian.sh              install missing packages; exit status 0 on success, 3 if they cannot be installed
#   install-debian.sh --check      only print the missing packages; exit status 0 if none is missing, else 3
#   install-debian.sh --with-ssh   also install openssh-server, for `mpirun --host` between the hosts of the test cluster
#
# Slurm is not configured or started on this machine: testbed.sh has its own configuration and daemons.

set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
packages=(slurmctld slurmd slurm-client munge iproute2 libpmix-dev)
check=

for option in "$@"; do
    case $option in
        --check)    check=yes ;;
        --with-ssh) packages+=(openssh-server) ;;
        *)          sed -n '3,9s/^# \{0,1\}//p' "$0"; [ "$option" = --help ] && exit 0; exit 2 ;;
    esac
done

cannot() { echo "Slurm tests will be skipped: $*" >&2; exit 3; }

command -v dpkg-query >/dev/null || cannot "this is not a Debian system; only Debian's package names are known"
missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
        missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ -z "$check" ] || cannot "missing packages: ${missing[*]}"
[ "$(id -u)" = 0 ] || cannot "missing packages, which only root can install: ${missing[*]}"
command -v apt-get >/dev/null || cannot "apt-get is not available to install ${missing[*]}"

echo "Installing Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# RUNLEVEL=1: the packages' scripts do not start daemons.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
{ apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null || {
    tail -n 15 "$log" >&2
    cannot "apt-get could not install ${missing[*]}"
}
