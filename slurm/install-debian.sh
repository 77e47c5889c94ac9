#!/usr/bin/env bash
#
# install-debian.sh - the Debian packages that testbed.sh needs, so that the tests under Slurm can run.
#
#   install-debian.sh              install what is missing; exit status 0 if all is there, 3 if it cannot be had here
#   install-debian.sh --check      install nothing; say what is missing, with the same exit status
#   install-debian.sh --with-ssh   openssh-server too: only `mpirun --host` between the test cluster's hosts uses it
#
# Nothing of Slurm is configured or left running on this machine: testbed.sh has its own configuration and daemons.

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

command -v dpkg-query >/dev/null || cannot "this is no Debian system, and the packages are only known for Debian"
missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
        missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ -z "$check" ] || cannot "these packages are missing: ${missing[*]}"
[ "$(id -u)" = 0 ] || cannot "these packages are missing, and only root can install them: ${missing[*]}"
command -v apt-get >/dev/null || cannot "there is no apt-get to install ${missing[*]}"

echo "Installing Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# RUNLEVEL=1: the packages' scripts start no daemon.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
{ apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null || {
    tail -n 15 "$log" >&2
    cannot "apt-get could not install ${missing[*]}"
}
