#!/bin/sh
# Makes .venv from requirements.lock. Needs Python 3.11, 3.12 or 3.13 and nothing else; `make` calls it
# when the lock is newer than the environment.
set -eu

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    found=$(python3 --version 2>&1 || echo "no python3")
    echo "nightowl needs Python 3.11, 3.12 or 3.13; found: $found." >&2
    echo "Install one, or name it: make PYTHON=/path/to/python3.12" >&2
    exit 2
fi

if ! { [ -x .venv/bin/python ] && fits .venv/bin/python; }; then
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
fi

echo "Installing the lock into .venv with $(.venv/bin/python --version) (about a minute the first time) ..."
wanted=$(sed -n 's/^uv==\([^ ;]*\).*/\1/p' requirements.lock)
[ "$(.venv/bin/uv --version 2>/dev/null | cut -d' ' -f2)" = "$wanted" ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$wanted"
.venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
touch .venv/.ready
