#!/bin/sh
# Makes a random password for each user of the broker that has none, and the broker's password file of all of them.
# Run by the service `passwords` of compose.yaml; a folder may be given instead of its volume.
set -eu
umask 077
auth=${1:-/run/auth}
list=$auth/passwords.new
: >"$list"
for user in piagent homeassistant; do
    if [ ! -s "$auth/$user" ]; then
        head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$auth/$user"
    fi
    printf '%s:%s\n' "$user" "$(cat "$auth/$user")" >>"$list"
done
mosquitto_passwd -U "$list"
# Each reader its own file: 1883 is mosquitto in its image, 10001 is piagent in ours.
chown 1883:1883 "$list"
chown 10001:10001 "$auth/piagent"
chmod 0755 "$auth"
mv "$list" "$auth/passwords"
