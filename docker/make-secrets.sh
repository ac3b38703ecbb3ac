#!/bin/sh
# Makes the secrets of a deployment, each random, each in a file of its own: for compose.yaml, and with --kubernetes for the secret of
# docker/kubernetes. What is there already is kept, so that it can be run again. Keep a copy of encryption_key: without it nothing that
# was stored can be read.
#
#   docker/make-secrets.sh [--kubernetes] [FOLDER]     FOLDER: docker/secrets unless given
#
# The folder is closed to other users (0700); the files in it are readable (0444), since containers of several users read them.
set -eu
kubernetes=""
if [ "${1:-}" = --kubernetes ]; then
    kubernetes=yes
    shift
fi
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 0700 "$folder"

# BYTES: as many random ones, in hexadecimal.
random() {
    od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n'
}

# NAME TEXT: whole or not at all.
keep() {
    [ -s "$folder/$1" ] && return 0
    [ -n "$2" ] || {
        echo "Nothing random could be read for $1" >&2
        exit 1
    }
    printf '%s\n' "$2" >"$folder/.$1.new"
    chmod 0444 "$folder/.$1.new"
    mv "$folder/.$1.new" "$folder/$1"
    made="$made $1"
}
made=""
keep encryption_key "$(random 32)"
keep jwt_secret "$(random 32)"
keep cluster_secret "$(random 32)"
keep metrics_token "$(random 32)"
if [ -z "$kubernetes" ]; then
    keep grafana_password "$(random 16)"
    for database in global regional; do
        keep "${database}_database_password" "$(random 32)"
        password=$(cat "$folder/${database}_database_password")
        keep "${database}_database_url" "postgresql://anvil:$password@$database-database:5432/anvil"
    done
else
    for database in global regional; do
        [ -s "$folder/${database}_database_url" ] ||
            echo "Still to be written: $folder/${database}_database_url, postgresql://user:password@host:5432/database" >&2
    done
fi
echo "In $folder, made now:${made:- nothing}"
