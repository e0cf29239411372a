#!/usr/bin/env bash
# Installs piagent as a service on Raspberry Pi OS (or any Debian with systemd), from the checkout it stands in.
# Asks nothing; running it again updates the program and keeps every file in /etc/piagent.
set -euo pipefail
umask 022 # the service's user must be able to read the program, whatever root's own habit is

usage() {
    cat <<'TEXT'
usage: sudo deploy/install.sh [install] [--with-mosquitto] [--source PATH] [--no-start] [--root DIR]
       sudo deploy/install.sh uninstall [--purge] [--root DIR]

  install            the program to /opt/piagent, the service `piagent`, the settings to /etc/piagent
  --with-mosquitto   the broker too: installed if missing, with passwords and rules for piagent and Home Assistant
  --source PATH      a wheel or another checkout instead of this one
  --no-start         install and enable, do not start
  uninstall          removes the program and the service; settings, conversations and the broker's files stay
  --purge            removes those too (never the broker itself)
  --root DIR         put everything below DIR and touch nothing else (to look at it, or to test)
TEXT
}

say() { printf 'piagent: %s\n' "$*"; }
die() { printf 'piagent: %s\n' "$*" >&2; exit 1; }

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
action=install with_mosquitto='' purge='' start=yes root='' source=$(dirname -- "$here")

while (($#)); do
    case $1 in
        install | uninstall) action=$1 ;;
        --with-mosquitto) with_mosquitto=yes ;;
        --purge) purge=yes ;;
        --no-start) start='' ;;
        --root | --source)
            (($# > 1)) || die "$1 needs a path"
            if [[ $1 == --root ]]; then root=$2; else source=$2; fi
            shift
            ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
[[ -z $purge || $action == uninstall ]] || { usage >&2; exit 2; }
[[ -e $source ]] || die "--source: there is no file or folder $source"
source=$(realpath -- "$source") # a bare name would be a package of that name in pip's index
if [[ -n $root ]]; then
    mkdir -p -- "$root"
    root=$(cd -- "$root" && pwd)
    root=${root%/}
    start=''
fi
[[ -n $root || $(id -u) == 0 ]] || die "run it with sudo (or try it with --root DIR)"

opt=$root/opt/piagent
etc=$root/etc/piagent
state=$root/var/lib/piagent
unit=$root/etc/systemd/system/piagent.service
command=$root/usr/local/bin/piagent
broker=$root/etc/mosquitto

# What systemd runs now, as against what is only written down for its next start.
systemd_runs() { [[ -z $root && -d /run/systemd/system ]]; }
service() { if systemd_runs; then systemctl "$@"; fi; }
enablement() { # enable or disable also works on files alone, where no systemd runs
    if command -v systemctl >/dev/null; then systemctl ${root:+"--root=$root"} -q "$1" piagent.service; fi
}

need_packages() { # Debian packages for commands that are missing
    [[ -z $root ]] || die "missing for this: $*"
    command -v apt-get >/dev/null || die "please install: $*"
    say "installing $*"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@"
}

keep_or_copy() { # FROM TO MODE: a file that the owner of the machine may have changed is never overwritten
    [[ -e $2 ]] || install -D -m "$3" -- "$1" "$2"
}

random_password() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

install_program() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "Python 3.11 or later is needed"
    python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3-venv
    # Made anew when it is broken, as after an upgrade of the system's Python.
    "$opt/bin/python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$opt"
    say "installing the program from $source"
    "$opt/bin/pip" install -q --disable-pip-version-check --upgrade "${source}[wyoming]"
    if [[ -f $source ]]; then # pip passes over a wheel of the version that is there
        "$opt/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps "$source"
    fi
    install -D -m 0755 -- "$here/systemd/piagent.sh" "$command"
}

install_settings() {
    install -d -m 0755 -- "$etc"
    keep_or_copy "$here/systemd/piagent.env" "$etc/piagent.env" 0644
}

install_service() {
    install -D -m 0644 -- "$here/systemd/piagent.service" "$unit"
    enablement enable
    service daemon-reload
    if [[ -n $start ]]; then service restart piagent.service; fi
}

refuse_foreign_broker() { # two listeners or two password files in one broker contradict each other
    local others
    if others=$(grep -rlsE '^[[:space:]]*(listener|port|password_file|acl_file)[[:space:]]' \
        --include='*.conf' --exclude=piagent.conf -- "$broker"); then
        say "this broker has a configuration of its own (${others//$'\n'/, }): left as it is" >&2
        die "add a user for piagent and the rules of $here/mosquitto/piagent.acl there, then run this without --with-mosquitto"
    fi
}

broker_user() { # the name that the service logs in with, as its environment file says; the last line wins there
    [[ -e $etc/piagent.env ]] || return 0
    sed -nE 's/^[[:space:]]*(PIAGENT_)?MQTT_USERNAME[[:space:]]*=//p' "$etc/piagent.env" | tail -n 1 |
        sed -E "s/^[[:space:]]*//; s/[[:space:]]*$//; s/^([\"'])(.*)\\1$/\\2/"
}

password_file() { # USER: where the password is that the service and the people read
    if [[ $1 == homeassistant ]]; then printf '%s' "$etc/homeassistant_password"; else printf '%s' "$etc/mqtt_password"; fi
}

refuse_impossible_login() { # what a line NAME:PASSWORD cannot hold
    local file password user
    user=$(broker_user)
    [[ ${user:-piagent} =~ ^[A-Za-z0-9_.@-]+$ && $user != homeassistant ]] ||
        die "MQTT_USERNAME in $etc/piagent.env should be a name of its own of letters, digits and _ . @ -, but is $user"
    for file in "$etc/mqtt_password" "$etc/homeassistant_password"; do
        [[ -s $file ]] || continue
        password=$(<"$file")
        if [[ $password == *[:$'\n']* || $password == [[:blank:]]* || $password == *[[:blank:]] ]]; then
            die "the password in $file should be one line, without a colon and blanks around it: mosquitto would cut it"
        fi
    done
}

write_logins() { # USER...: those that the broker does not know yet, or whose password file is newer than its own
    local user password logins=$broker/piagent.passwd new=$etc/.new
    : >"$new"
    for user; do
        password=$(password_file "$user")
        [[ -s $password ]] || random_password >"$password"
        if [[ $password -nt $logins ]] || ! cut -d: -f1 "$logins" | grep -xF -- "$user" >/dev/null; then
            printf '%s:%s\n' "$user" "$(<"$password")" >>"$new"
        fi
    done
    if [[ -s $new ]]; then
        mosquitto_passwd -U "$new" # from a file: an argument could be read in the list of processes
        if [[ -e $logins ]]; then awk -F: 'NR == FNR { made[$1]; next } !($1 in made)' "$new" "$logins" >>"$new.all"; fi
        cat "$new" >>"$new.all"
        cat "$new.all" >"$logins" # in place: its owner and mode stay
    fi
    rm -f "$new" "$new.all"
}

install_broker() {
    local rules=$broker/piagent.acl user
    if ! command -v mosquitto >/dev/null || ! command -v mosquitto_passwd >/dev/null; then
        need_packages mosquitto mosquitto-clients
    fi
    user=$(broker_user)
    if [[ -z $user ]]; then
        user=piagent
        sed -i 's/^#MQTT_USERNAME=.*/MQTT_USERNAME=piagent/' "$etc/piagent.env"
        [[ $(broker_user) == "$user" ]] || printf '\nMQTT_USERNAME=%s\n' "$user" >>"$etc/piagent.env"
    fi
    install -d -m 0755 -- "$broker"
    (
        umask 077
        write_logins "$user" homeassistant
    )
    if [[ -z $root ]]; then
        chown root:mosquitto "$broker/piagent.passwd" # the broker reads it again, as its own user, on SIGHUP
        chmod 0640 "$broker/piagent.passwd"
    fi
    install -D -m 0644 -- "$here/mosquitto/piagent.conf" "$broker/conf.d/piagent.conf"
    if [[ ! -e $rules ]]; then
        keep_or_copy "$here/mosquitto/piagent.acl" "$rules" 0644
        sed -i "s/^user piagent$/user $user/" "$rules"
    elif ! grep -qxF -- "user $user" "$rules"; then
        say "$rules has no rules for $user: write \`user $user\` in place of \`user piagent\` there" >&2
    fi
    service enable -q mosquitto.service
    service restart mosquitto.service
    say "the broker asks for a password; Home Assistant's (user homeassistant) is in $etc/homeassistant_password"
}

uninstall() {
    if [[ -e $unit ]]; then
        service stop piagent.service
        enablement disable
    fi
    rm -f -- "$unit" "$command"
    rm -rf -- "$opt"
    if [[ -n $purge ]]; then rm -rf -- "$unit.d"; fi # what `systemctl edit piagent` wrote
    service daemon-reload
    if [[ -n $purge ]]; then
        # The dynamic user's state lies in private/, with a link to it.
        rm -rf -- "$etc" "$state" "$root/var/lib/private/piagent"
        if [[ -e $broker/conf.d/piagent.conf ]]; then
            rm -f -- "$broker/conf.d/piagent.conf" "$broker/piagent.acl" "$broker/piagent.passwd"
            service try-restart mosquitto.service
        fi
        say "removed, with settings and conversations"
    else
        say "removed; settings stay in $etc, conversations in $state (--purge removes them)"
    fi
}

if [[ $action == uninstall ]]; then
    uninstall
    exit 0
fi
if [[ -n $with_mosquitto ]]; then
    refuse_foreign_broker
    refuse_impossible_login
fi
install_program
install_settings
if [[ -n $with_mosquitto ]]; then install_broker; fi
install_service
say "installed. Look: systemctl status piagent    Check: sudo piagent doctor    Settings: $etc/piagent.env"
