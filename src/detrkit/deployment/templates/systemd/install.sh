#!/bin/sh
# Installs <<name>> as a service of this machine; as root:  sh install.sh
# Run again, it replaces program and bundle and starts the service anew. PYTHON names another Python, 3.11 or newer.
set -eu
cd "$(dirname "$0")"
place=${DESTDIR:-}/opt/<<name>>
mkdir -p "$place" "${DESTDIR:-}/etc/systemd/system"
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt
"$place/venv/bin/python" -m pip install --disable-pip-version-check --no-deps --force-reinstall ./<<wheel>>
rm -rf "$place/bundle.new"
cp -R bundle "$place/bundle.new"
rm -rf "$place/bundle"
mv "$place/bundle.new" "$place/bundle"
# what others send in Authorization: Bearer
token=${DESTDIR:-}/etc/<<name>>.token
if [ ! -e "$token" ]; then
    (umask 077 && "$place/venv/bin/python" -c "import secrets; print(secrets.token_hex(32))" > "$token")
fi
install -m 644 <<name>>.service "${DESTDIR:-}/etc/systemd/system/<<name>>.service"
[ -n "${DESTDIR:-}" ] && exit 0
systemctl daemon-reload
systemctl enable <<name>>.service
systemctl restart <<name>>.service
