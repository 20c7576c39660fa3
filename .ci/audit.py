"""Search tracked files for secrets, and the packages of requirements.lock for known vulnerabilities. Exit with 1 if anything is found.

`make check` runs both. `make lint` passes the argument `secrets` to search only for secrets.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = "requirements.lock"
# Accepted vulnerabilities: id -> reason.
ACCEPTED: dict[str, str] = {}
HASHES = r"^(requirements\.lock|dvc\.lock|.*\.dvc|data/models/.*)$"  # files that contain only hashes


def vulnerabilities() -> bool:
    command = ["pip-audit", "--requirement", LOCK, "--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"pip-audit: {result.stderr.strip().splitlines()[-1] if result.stderr.strip() else 'no output'}")
        return False
    looked_up = [package for package in packages if "skip_reason" not in package]
    known = [(package, item) for package in looked_up for item in package["vulns"] if item["id"] not in ACCEPTED]
    for package, item in known:
        fixed = ", ".join(item["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {item['id']}, fixed in {fixed}")
    print(f"pip-audit: checked {len(looked_up)} of {len(packages)} packages, found {len(known)} known vulnerabilities")
    if not looked_up:
        print("pip-audit: cannot reach the vulnerability service, so no package was checked")
    return not known


def secrets() -> bool:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    kept = [file for file in files if file and (ROOT / file).is_file()]
    command = ["detect-secrets-hook", "--no-verify", "--exclude-files", HASHES, *kept]  # verification would send secrets to a service
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    places = [line.partition("Location:")[2].strip() for line in result.stdout.splitlines() if line.startswith("Location:")]
    for place in places:
        print(f"{place}: possible secret; if it is not a secret, end the line with # pragma: allowlist secret")
    print(f"detect-secrets: {len(kept)} files, {len(places)} found")
    return result.returncode == 0


if __name__ == "__main__":
    checks = [secrets] if sys.argv[1:] == ["secrets"] else [secrets, vulnerabilities]
    sys.exit(not all([check() for check in checks]))
