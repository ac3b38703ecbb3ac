"""The XML writer loses and invents nothing; the reader accepts little."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.api.s3.documents import complete_parts, deletions, location_constraint
from anvil.api.s3.xml import NAMESPACE, Xml, escape, parse
from anvil.base.errors import AnvilError, InvalidArgument, InvalidPartOrder, InvalidRequest, MalformedXML, NotSupported

XML_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="".join(map(chr, range(32))) + "\ufffe\uffff")
    | st.sampled_from("\t\n\r&<>\"']")
)


@given(XML_TEXT)
def test_written_text_is_read_back(text: str) -> None:
    xml = Xml()
    xml.open("Root")
    xml.text("Key", text)
    xml.close("Root")
    assert ElementTree.fromstring(xml.bytes()).findtext("Key") == text


@given(st.text(st.characters(codec="utf-8")))
def test_no_text_is_markup(text: str) -> None:
    assert "<" not in escape(text) and ">" not in escape(text)


@pytest.mark.parametrize(
    ("character", "written"), [("\x01", "&#x1;"), ("\x1f", "&#x1F;"), ("\r", "&#xD;"), ("\ufffe", "&#xFFFE;")]
)
def test_characters_xml_has_not_are_references(character: str, written: str) -> None:
    assert escape(character) == written


@pytest.mark.parametrize("opening", ["<Delete>", f'<Delete xmlns="{NAMESPACE}">', f'<x:Delete xmlns:x="{NAMESPACE}">'])
def test_namespace_or_none(opening: str) -> None:
    closing = "</x:Delete>" if opening.startswith("<x:") else "</Delete>"
    document = f'<?xml version="1.0"?>\n{opening}<Object><Key>a</Key></Object>{closing}'
    if opening.startswith("<x:"):
        document = document.replace("<Object>", "<x:Object>").replace("</Object>", "</x:Object>")
        document = document.replace("<Key>", "<x:Key>").replace("</Key>", "</x:Key>")
    assert deletions(document.encode()).objects[0].key == "a"


HOSTILE = {
    "dtd": b'<!DOCTYPE Delete SYSTEM "http://evil.example/x.dtd"><Delete/>',
    "entity": b'<!DOCTYPE Delete [<!ENTITY a "b">]><Delete>&a;</Delete>',
    "billion laughs": b'<!DOCTYPE Delete [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><Delete>&b;</Delete>',
    "external entity": b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><Delete>&x;</Delete>',
    "undeclared entity": b"<Delete>&nbsp;</Delete>",
    "processing instruction": b'<?xml-stylesheet href="x"?><Delete/>',
    "too deep": b"<Delete>" + b"<a>" * 20 + b"</a>" * 20 + b"</Delete>",
    "too many": b"<Delete>" + b"<a/>" * 100_001 + b"</Delete>",
    "other namespace": b'<Delete xmlns="http://evil.example/"/>',
    "other root": b"<Remove/>",
    "two roots": b"<Delete/><Delete/>",
    "cut": b"<Delete><Object>",
    "not xml": b'{"Delete": []}',
    "not utf-8": b"<Delete>\xff</Delete>",
    "utf-16": "<Delete><Object/></Delete>".encode("utf-16"),
    "utf-16 without a mark": "<Delete><Object/></Delete>".encode("utf-16-le"),
    "U+0000": b"<Delete>\x00</Delete>",
    "reference to U+0001": b"<Delete>&#1;</Delete>",
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents(name: str) -> None:
    with pytest.raises(MalformedXML):
        parse(HOSTILE[name], "Delete")


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(document: bytes) -> None:
    try:
        parse(document, "Delete")
    except MalformedXML:
        pass


@pytest.mark.parametrize(
    ("inner", "error"),
    [
        ("", MalformedXML),
        ("<Object/>", MalformedXML),
        ("<Object><Key></Key></Object>", MalformedXML),
        ("<Object><Key>a</Key><Key>b</Key></Object>", MalformedXML),
        ("<Quiet>perhaps</Quiet><Object><Key>a</Key></Object>", MalformedXML),
        ("<Object><Key>a</Key></Object>" * 1001, MalformedXML),
    ],
)
def test_bad_deletions(inner: str, error: type[AnvilError]) -> None:
    with pytest.raises(error):
        deletions(f"<Delete>{inner}</Delete>".encode())


def test_deletions() -> None:
    found = deletions(
        b"<Delete><Quiet>true</Quiet><Object><Key> a b </Key><VersionId>null</VersionId></Object>"
        b'<Object><Key>&amp;&#228;</Key><ETag>"x"</ETag><Size>3</Size></Object></Delete>'
    )
    assert found.quiet
    assert found.objects[0] == (" a b ", "null", None, None)
    assert found.objects[1] == ("&ä", None, '"x"', "Size")


def part(number: object, etag: str = "e", more: str = "") -> str:
    return f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{more}</Part>"


@pytest.mark.parametrize(
    ("inner", "error"),
    [
        ("", MalformedXML),
        (part(1) + part(1), InvalidPartOrder),
        (part(2) + part(1), InvalidPartOrder),
        (part(0), InvalidArgument),
        (part(10_001), InvalidArgument),
        (part(-1), MalformedXML),
        (part("x"), MalformedXML),
        (part(1, ""), MalformedXML),
        (part(1, more="<ChecksumCRC32>AA==</ChecksumCRC32>"), InvalidRequest),
    ],
)
def test_bad_completions(inner: str, error: type[AnvilError]) -> None:
    with pytest.raises(error):
        complete_parts(f"<CompleteMultipartUpload>{inner}</CompleteMultipartUpload>".encode())


def test_completions() -> None:
    more = "<ChecksumCRC32>AAAAAQ==</ChecksumCRC32>"
    document = f"<CompleteMultipartUpload>{part(1, '&quot;ab&quot;')}{part(10_000, 'cd', more)}</CompleteMultipartUpload>"
    first, last = complete_parts(document.encode())
    assert (first.number, first.etag, first.checksum) == (1, "ab", None)
    assert (last.number, last.etag, last.checksum) == (10_000, "cd", b"\0\0\0\1")


def test_location_constraint() -> None:
    inner = "<LocationConstraint>eu-west-1</LocationConstraint>"
    assert location_constraint(f"<CreateBucketConfiguration>{inner}</CreateBucketConfiguration>".encode()) == "eu-west-1"
    assert location_constraint(b"<CreateBucketConfiguration/>") == location_constraint(b"") == ""
    with pytest.raises(NotSupported):
        location_constraint(b"<CreateBucketConfiguration><Bucket/></CreateBucketConfiguration>")
