"""The documents clients send, as values: CreateBucketConfiguration, Delete, CompleteMultipartUpload.

Owns: their schemas and counts. Invariant: an element that would ask for something Anvil does not do is refused, not skipped;
elements S3 does not know either are ignored, as S3 does. Not here: parsing (`xml.py`), reading the body (`payload.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from anvil.api.operations import uploads
from anvil.api.s3.checksums import XML_NAME, decode
from anvil.api.s3.xml import Element, parse
from anvil.base.errors import MalformedXML, NotSupported
from anvil.base.limits import DELETE_KEYS_MAX, PART_NUMBER_MAX
from anvil.engine.types import CompletePart


def location_constraint(document: bytes) -> str:
    """Region a new bucket is asked to be in; "" when nothing is said. Raises MalformedXML, NotSupported."""
    if not document.strip():
        return ""
    root = parse(document, "CreateBucketConfiguration")
    for name, feature in (("Location", "Directory buckets are"), ("Bucket", "Directory buckets are"), ("Tags", "Tagging is")):
        if root.find(name) is not None:
            raise NotSupported(f"{feature} not implemented.")
    return root.value("LocationConstraint") or ""


class Deletion(NamedTuple):
    """One line of DeleteObjects. `etag` as sent; `unsupported` names a condition Anvil does not have."""

    key: str
    version: str | None
    etag: str | None
    unsupported: str | None


class Deletions(NamedTuple):
    objects: tuple[Deletion, ...]
    quiet: bool


def deletions(document: bytes) -> Deletions:
    """Raises MalformedXML: also for none, for more than 1,000, and for an entry without a key."""
    root = parse(document, "Delete")
    objects = [_deletion(child) for child in root.children if child.name == "Object"]
    if not 1 <= len(objects) <= DELETE_KEYS_MAX:
        raise MalformedXML()
    quiet = (root.value("Quiet") or "false").lower()
    if quiet not in ("true", "false"):
        raise MalformedXML()
    return Deletions(tuple(objects), quiet == "true")


def _deletion(element: Element) -> Deletion:
    # White space is part of a key, so its text is not stripped.
    keys = [child.text for child in element.children if child.name == "Key"]
    if len(keys) != 1 or not keys[0]:
        raise MalformedXML()
    unsupported = next((name for name in ("LastModifiedTime", "Size") if element.find(name) is not None), None)
    return Deletion(keys[0], element.value("VersionId") or None, element.value("ETag"), unsupported)


def complete_parts(document: bytes) -> list[CompletePart]:
    """The parts of a completion. Raises MalformedXML, InvalidPartOrder, InvalidArgument (a number out of range),
    InvalidRequest."""
    root = parse(document, "CompleteMultipartUpload")
    elements = [child for child in root.children if child.name == "Part"]
    if not 1 <= len(elements) <= PART_NUMBER_MAX:
        raise MalformedXML()
    parts = [_part(element) for element in elements]
    uploads.check_list(parts)
    return parts


def _part(element: Element) -> CompletePart:
    number, etag = element.value("PartNumber"), element.value("ETag")
    if not number or not etag or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise MalformedXML()
    checksum = None
    for algorithm, name in XML_NAME.items():
        text = element.value(name)
        if text:
            if checksum is not None:
                raise MalformedXML("A part has more than one checksum.")
            checksum = decode(algorithm, text, name)
    return uploads.listed_part(int(number), etag, checksum)
