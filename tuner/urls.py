"""Passwords in URLs: they go to the server they are for, and into no message, link or record."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# In scheme://user:password@host. A password that was not quoted may hold any of /?#@, so that it ends at the
# last @.
_IN_AUTHORITY = re.compile(r"(://[^\s:/@]*):\S*@")
# In scheme://host/name?password=..., as libpq takes it.
_IN_QUERY = re.compile(r"([?&](?:ssl)?password=)[^&\s]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The same text with *** for the passwords of the URLs in it."""
    return _IN_QUERY.sub(r"\1***", _IN_AUTHORITY.sub(r"\1:***@", text))


def without_user(url: str) -> str:
    """The address alone, as a link that anybody may follow who is let in there."""
    authority = urlsplit(url).netloc
    return url.replace(authority, authority.rpartition("@")[2], 1) if "@" in authority else url
