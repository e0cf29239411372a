#!/bin/sh
# /usr/local/bin/piagent: the command line with the settings of the service, so that `piagent doctor` and `piagent ask`
# look at the same broker and model server as the daemon. What the environment already has, wins.
while IFS='=' read -r name value; do
    case $name in
        '' | *[!A-Za-z0-9_]*) continue ;; # a comment or an empty line
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
if [ -z "${MQTT_PASSWORD-}${MQTT_PASSWORD_FILE-}" ] && [ -r /etc/piagent/mqtt_password ] && [ -s /etc/piagent/mqtt_password ]; then
    export MQTT_PASSWORD_FILE=/etc/piagent/mqtt_password
fi
if [ -z "${OLLAMA_API_KEY-}${OLLAMA_API_KEY_FILE-}" ] && [ -r /etc/piagent/ollama_api_key ] && [ -s /etc/piagent/ollama_api_key ]; then
    export OLLAMA_API_KEY_FILE=/etc/piagent/ollama_api_key
fi
exec /opt/piagent/bin/piagent "$@"
