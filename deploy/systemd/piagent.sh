#!/bin/sh
# /usr/local/bin/piagent: the command line with the settings of the service, so that `piagent doctor` and `piagent ask`
# look at the same broker and model server as the daemon. What the environment already has, wins.
settings=/etc/piagent/piagent.env
secrets=/etc/piagent

unclear() { # to leave a line out, or to take it for something else, could mean another broker
    echo "piagent: $settings:$number: only systemd can read this; write a value on one line, without backslashes, and" \
        "quotes only around the whole of it" >&2
    exit 78
}

# As systemd reads it: blanks around names and values do not count, the last line of a name wins.
number=0 taken=' '
while IFS= read -r line; do
    number=$((number + 1))
    case $line in
        [#\;]*\\) unclear ;; # whether the next line belongs to the comment, depends on systemd's version
        [#\;]*) continue ;;
    esac
    name=${line%%=*} value=${line#*=}
    case $value in
        \"*\")
            value=${value#\"} value=${value%\"}
            case $value in *[\"\\]*) unclear ;; esac
            ;;
        \'*\')
            value=${value#\'} value=${value%\'}
            case $value in *\'*) unclear ;; esac
            ;;
        [\"\']* | *\\*) unclear ;;
    esac
    case $name in
        '' | "$line" | [0-9]* | *[!A-Za-z0-9_]*) continue ;; # without "=", or no name: systemd passes over it, too
    esac
    case $taken in
        *" $name "*) ;;
        *) if printenv "$name" >/dev/null; then continue; fi ;;
    esac
    taken="$taken$name "
    export "$name=$value"
done <<TEXT
$(sed 's/^[[:space:]]*//; s/[[:space:]]*$//; s/[[:blank:]]*=[[:blank:]]*/=/' "$settings" 2>/dev/null)
TEXT

# Secrets as the service gets them, last in the order of places. They are readable with sudo only.
for name in mqtt_password ollama_api_key provider_key openai_api_key anthropic_api_key hf_token; do
    if [ -e "$secrets/$name" ] && [ ! -r "$secrets/$name" ]; then secrets=''; fi
done
if [ -n "$secrets" ] && ! printenv CREDENTIALS_DIRECTORY >/dev/null; then export CREDENTIALS_DIRECTORY="$secrets"; fi
exec /opt/piagent/bin/piagent "$@"
