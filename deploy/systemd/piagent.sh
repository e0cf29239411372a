#!/bin/sh
# /usr/local/bin/piagent: the command line with the settings of the service, so that `piagent doctor` and `piagent ask`
# look at the same broker and model server as the daemon. What the environment already has, wins.
while IFS= read -r line; do
    name=${line%%=*} value=${line#*=}
    case $name in
        '' | "$line" | *[!A-Za-z0-9_]*) continue ;; # an empty line, one without "=", a comment
    esac
    case $value in # systemd takes a value in quotes, too
        \"*\") value=${value#\"} value=${value%\"} ;;
        \'*\') value=${value#\'} value=${value%\'} ;;
    esac
    if ! printenv "$name" >/dev/null; then export "$name=$value"; fi
done <<EOF
$(cat /etc/piagent/piagent.env 2>/dev/null)
EOF
# Secrets are readable with sudo only.
for file in mqtt_password ollama_api_key provider_key openai_api_key anthropic_api_key hf_token; do
    name=$(echo "$file" | tr '[:lower:]' '[:upper:]')
    if [ -r "/etc/piagent/$file" ] && [ -s "/etc/piagent/$file" ] && [ -z "$(printenv "$name" "${name}_FILE")" ]; then
        export "${name}_FILE=/etc/piagent/$file"
    fi
done
exec /opt/piagent/bin/piagent "$@"
