"""Known vulnerabilities of what requirements.lock installs: `make audit`.

pip-audit asks the package index. Where that knows nothing of vulnerabilities or does not answer, this says so and ends
well; it ends with 1 only where a vulnerability is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SECONDS = 240


def main() -> int:
    command = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "--from", "pip-audit", "pip-audit"]
    command += ["--requirement", str(LOCK), "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        told = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        print("audit: the index does not answer; nothing was audited")
        return 0
    audited = [one for one in told if "vulns" in one]
    found = [(one, vulnerability) for one in audited for vulnerability in one["vulns"]]
    for one, vulnerability in found:
        mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {mended}")
    print(f"audit: {len(audited)} of {len(told)} packages audited, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
