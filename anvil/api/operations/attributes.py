"""What a client may say about an object beside its bytes.

Owns: the rules of values. Invariant: whatever is stored can be said back as headers of an answer, however it came in. Source:
S3 User Guide, "Working with object metadata". Not here: headers (`api/s3/metadata.py`), messages (`api/grpc/values.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from anvil.base.errors import InvalidArgument, InvalidRequest, MetadataTooLarge
from anvil.base.limits import USER_METADATA_BYTES_MAX
from anvil.model.records import Attributes

_REDIRECT_CHARS_MAX = 2048
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110, 5.6.2, lower case


def content_encoding(text: str) -> str | None:
    """Without `aws-chunked`, which describes the transfer and not the object; None when nothing else is left."""
    rest = [token for token in (part.strip() for part in text.split(",")) if token and token.lower() != "aws-chunked"]
    return ",".join(rest) or None


def website_redirect(location: str) -> str:
    """The location itself. Raises InvalidRequest."""
    if not location.startswith(("/", "http://", "https://")) or len(location) > _REDIRECT_CHARS_MAX:
        raise InvalidRequest("The website redirect location must have a prefix of 'http://' or 'https://' or '/'.")
    return location


def check_user(user: Mapping[str, str]) -> None:
    """Names and values together. Raises MetadataTooLarge."""
    size = sum(len(name.encode("utf-8")) + len(value.encode("utf-8")) for name, value in user.items())
    if size > USER_METADATA_BYTES_MAX:
        raise MetadataTooLarge(Size=size, MaxSizeAllowed=USER_METADATA_BYTES_MAX)


def has_controls(text: str) -> bool:
    """Whether it holds a character that could end a header, or is none."""
    return any(ord(character) < 0x20 or ord(character) == 0x7F for character in text)


def is_field_name(name: str) -> bool:
    """Whether a header can have that name, which is in lower case."""
    return _FIELD_NAME.fullmatch(name) is not None


def header_value(text: str, name: str) -> str:
    """A value that did not come as a header and will be one: the text itself. Raises InvalidArgument, naming it, for what a header
    cannot hold."""
    if has_controls(text) or text != text.strip(" "):
        raise InvalidArgument(
            "A value contains control characters, or white space at its ends, which no header can.", ArgumentName=name
        )
    return text


def of_copy(source: Attributes, stated: Attributes, *, replace: bool) -> Attributes:
    """The source's, or those stated. A website redirect is never copied (API Reference, CopyObject)."""
    if replace:
        return stated
    return Attributes(
        content_type=source.content_type,
        cache_control=source.cache_control,
        content_disposition=source.content_disposition,
        content_encoding=source.content_encoding,
        content_language=source.content_language,
        expires=source.expires,
        website_redirect=stated.website_redirect,
        user=source.user,
    )
