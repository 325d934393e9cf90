"""What `make audit` makes of pip-audit's answer."""

from __future__ import annotations

import json

import pytest

from tests.audit import verdict

pytestmark = pytest.mark.quick

SOUND = {"name": "a", "version": "1", "vulns": []}
HIT = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND, UNKNOWN], 0, "No known vulnerabilities in 1 packages; 1 not asked about."),
        ([SOUND, HIT], 1, "b 2: CVE-1, mended in 3"),
        ([UNKNOWN], 0, "Nothing was audited: none of 1 packages is known there."),
    ],
)
def test_only_what_is_known_fails(packages: list[object], code: int, said: str) -> None:
    assert verdict(json.dumps({"dependencies": packages}), "") == (said, code)


def test_without_a_network_it_says_so() -> None:
    said, code = verdict("", "ERROR: ...\nHTTPSConnectionPool: unreachable\n")
    assert (said, code) == ("Nothing was audited: HTTPSConnectionPool: unreachable", 0)
