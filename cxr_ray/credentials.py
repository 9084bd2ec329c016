"""Credentials in URIs, kept out of all that is shown or stored: they are taken off where a text comes in.

What comes in (sweep files, ``--set``, ``--out``, arguments of the library) goes through ``without``: from there on a
URI is text without user, password or key. Those stay in the environment of this process, which Ray's processes on this
machine inherit, and ``revealed`` puts them back at the one place where file systems are opened. What goes out (errors,
lines of the terminal) goes through ``redacted``, since other libraries quote what they were given.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

VARIABLE = "CXR_RAY_CREDENTIALS"  # URIs without their credentials to what was taken off, as JSON
HIDDEN = "***"
PUBLIC = {  # keys of a query that pyarrow reads and that are no secret; of all others nothing is shown
    *(
        "region",
        "scheme",
        "endpoint_override",
        "anonymous",
        "enable_tls",
        "retry_limit_seconds",
        "default_bucket_location",
    ),
    *(
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "connect_timeout",
        "request_timeout",
        "force_virtual_addressing",
    ),
    *("blob_storage_authority", "dfs_storage_authority", "blob_storage_scheme", "dfs_storage_scheme", "replication"),
}
SHORTEST = 8  # characters of a secret that is looked for in a text; shorter ones are words
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:/{1,2}[^\s'\"<>]+")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|SIGNATURE|ACCESS_KEY_ID|SAS|CREDENTIALS)$", re.IGNORECASE)
_AZURE = ("abfs", "abfss", "wasb", "wasbs")  # whose URIs name a container where others name a user


class _Parts(NamedTuple):
    """A URI: what is shown of it, and the user and the keys of the query that are not."""

    base: str
    query: str
    user: str
    keys: str

    @property
    def shown(self) -> str:
        return f"{self.base}?{self.query}" if self.query else self.base


def without(text: str) -> str:
    """A text as it is, but a URI without its credentials, which this process remembers.

    >>> without("scans/2024"), without("s3://bucket/run?region=eu-west-1")
    ('scans/2024', 's3://bucket/run?region=eu-west-1')
    """
    parts = _parts(text)
    if parts is None or not (parts.user or parts.keys):
        return text
    os.environ[VARIABLE] = json.dumps({**_kept(), parts.base.rstrip("/"): [parts.user, parts.keys]})
    return parts.shown


def without_all(value: Any) -> Any:
    """Plain data with every text in it ``without`` credentials, keys of mappings too."""
    if isinstance(value, str):
        return without(value)
    if isinstance(value, dict):
        return {without_all(key): without_all(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(without_all, value))
    return value


def revealed(uri: str) -> str:
    """A URI with the credentials that were taken off it, or off one above or below it: to be opened, never kept."""
    parts = _parts(uri)
    if parts is None or parts.user or parts.keys:
        return uri
    related = [base for base in _kept() if _is_below(base, parts.base) or _is_below(parts.base, base)]
    if not related:
        return uri
    above = [base for base in related if _is_below(parts.base, base)]
    user, keys = _kept()[max(above, key=len) if above else min(related, key=len)]
    scheme, _, place = parts.base.partition("://")
    place = f"{user}@{place.rpartition('@')[2] if user and scheme in _AZURE else place}" if user else place
    query = "&".join(filter(None, (parts.query, keys)))
    return f"{scheme}://{place}?{query}" if query else f"{scheme}://{place}"


def redacted(text: str) -> str:
    """A text for people: URIs in it without credentials, and no secret of the environment.

    >>> redacted("cannot open s3://AKIA:abc/def@bucket/run?X-Amz-Signature=12.")
    'cannot open s3://bucket/run.'
    """
    text = _IN_TEXT.sub(_shown, text)
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return text


def were_given() -> bool:
    """Whether any URI came with credentials."""
    return bool(_kept())


def _shown(found: re.Match[str]) -> str:
    text = found[0].rstrip(").,;:!?]}")
    scheme, _, rest = text.partition(":")
    parts = _parts(f"{scheme}://{rest.lstrip('/')}")  # paths have one slash where there were two
    if parts is None or not (parts.user or parts.keys):
        return found[0]
    return parts.shown + found[0][len(text) :]


def _parts(text: str) -> _Parts | None:
    """What a URI is made of; None for any other text."""
    match = _URI.fullmatch(text)
    if match is None:
        return None
    scheme, rest = match[1], match[2]
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    user = ""
    if "@" in authority:
        user, _, authority = authority.rpartition("@")
        place = f"{authority}/{path}" if path or place.endswith("/") else authority
    elif "@" in place and re.search(r":(?!\d+$)", authority):  # a key with a slash in it, which should be %2F
        user, _, place = place.partition("@")
    name, colon, password = user.partition(":")
    is_public = not password and (scheme in _AZURE or name == "anonymous")
    if user and (is_public or scheme in _AZURE):
        place = f"{name}@{place}"
    pairs = [pair for pair in query.split("&") if pair]
    public = [p for p in pairs if p.partition("=")[0] in PUBLIC and "@" not in unquote(p)]
    keys = [p for p in pairs if p not in public]
    safe = "" if is_public or not user else quote(unquote(name), safe="") + colon + quote(unquote(password), safe="")
    return _Parts(f"{scheme}://{place}", "&".join(public), safe, "&".join(keys))


def _is_below(inner: str, outer: str) -> bool:
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def _kept() -> dict[str, list[str]]:
    """URIs without credentials to their user and keys."""
    found: dict[str, list[str]] = json.loads(os.environ.get(VARIABLE) or "{}")
    return found


def _secrets() -> list[str]:
    """What must not be seen, the longest first."""
    parts = [(base, part) for base, (user, keys) in _kept().items() for part in (*user.split(":"), *_values(keys))]
    found = {text for base, part in parts if part not in base for text in (part, unquote(part))}
    for name, value in os.environ.items():
        is_file = Path(value).is_absolute() and not name.startswith("AWS_")  # whose keys may begin with a slash
        if name != VARIABLE and _SECRET_NAME.search(name) and not is_file:
            found.add(value)
    return sorted((s for s in found if len(s) >= SHORTEST), key=len, reverse=True)


def _values(query: str) -> Iterator[str]:
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        yield value if equals else key
