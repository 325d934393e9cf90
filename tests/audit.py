"""`make audit`: what is publicly known of vulnerabilities of the packages that are installed, by pip-audit.

Ends with 1 where something is known, and with 0 and a sentence where nobody could be asked: a machine without
a network can still run `make check`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def verdict(output: str, errors: str) -> tuple[str, int]:
    """What to say of pip-audit's JSON document and its last words, and the exit code."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        reason = (errors.strip().splitlines() or ["no reason given"])[-1]
        return f"Nothing was audited: {reason}", 0
    asked = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {known['id']}, mended in "
        f"{', '.join(known['fix_versions']) or '?'}"
        for package in asked
        for known in package["vulns"]
    ]
    if found:
        return "\n".join(found), 1
    if not asked:
        return (
            f"Nothing was audited: none of {len(packages)} packages is known there.",
            0,
        )
    return (
        f"No known vulnerabilities in {len(asked)} packages; {len(packages) - len(asked)} not asked about.",
        0,
    )


def main() -> int:
    """Asks about this interpreter's packages."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
    ]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    text, code = verdict(asked.stdout, asked.stderr)
    sys.stdout.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
