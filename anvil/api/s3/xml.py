"""XML as S3 speaks it: a writer for answers, and a strict reader for the few documents clients send.

Owns: escaping, and the bounds of what is parsed. Invariants: whatever a key contains, the document stays what was meant (a key
cannot open or close an element); the reader refuses a DTD before it can declare anything, so there are no entities to expand, and
it is bounded in depth, number of elements and (by its caller) in size. Not here: the schemas of operations (`documents.py`).

Characters that XML 1.0 cannot hold (most of U+0000-001F, U+FFFE, U+FFFF) are written as numeric references, as S3 does: the
document is then not well-formed for strict parsers, but no key is ever shown as another one. `encoding-type=url` avoids it;
SDKs send that.
"""

from __future__ import annotations

import re
from xml.parsers import expat

from anvil.base.errors import MalformedXML
from anvil.base.limits import XML_DEPTH_MAX, XML_ELEMENTS_MAX

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
PROLOG = '<?xml version="1.0" encoding="UTF-8"?>\n'
CONTENT_TYPE = (b"content-type", b"application/xml")

_SPECIAL = re.compile("[&<>\"'\x00-\x1f\x7f-\x9f\ufffe\uffff]")
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;", "\n": "\n", "\t": "\t"}


def _reference(match: re.Match[str]) -> str:
    character = match.group()
    return _NAMED.get(character) or f"&#x{ord(character):X};"


def escape(text: str) -> str:
    """Text as element content. CR becomes a reference, or a parser would read it as a line feed (XML 1.0, 2.11)."""
    return _SPECIAL.sub(_reference, text)


class Xml:
    """An append-only document. Element names are literals of this code base and are not escaped."""

    __slots__ = ("_out",)

    def __init__(self, prolog: bool = True) -> None:
        self._out: list[str] = [PROLOG] if prolog else []

    def open(self, name: str, *, namespace: bool = False) -> None:
        self._out.append(f'<{name} xmlns="{NAMESPACE}">' if namespace else f"<{name}>")

    def close(self, name: str) -> None:
        self._out.append(f"</{name}>")

    def text(self, name: str, value: str) -> None:
        self._out.append(f"<{name}>{escape(value)}</{name}>")

    def number(self, name: str, value: int) -> None:
        self._out.append(f"<{name}>{value}</{name}>")

    def flag(self, name: str, value: bool) -> None:
        self._out.append(f"<{name}>{'true' if value else 'false'}</{name}>")

    def raw(self, markup: str) -> None:
        """Markup that is already escaped."""
        self._out.append(markup)

    def bytes(self) -> bytes:
        return "".join(self._out).encode("utf-8")


class Element:
    """One element of a parsed document: local name, text without its children's, children in order."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[Element] = []

    def find(self, name: str) -> Element | None:
        for child in self.children:
            if child.name == name:
                return child
        return None

    def value(self, name: str) -> str | None:
        """Text of the only child of that name, outer white space removed. Raises MalformedXML when there are two."""
        found = [child for child in self.children if child.name == name]
        if len(found) > 1:
            raise MalformedXML(f"The element {name} is given more than once.")
        return found[0].text.strip() if found else None


class _Builder:
    """Collects elements; raises MalformedXML out of expat's callbacks, which ends the parse."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._stack: list[Element] = []
        self._text: list[list[str]] = []
        self._count = 0

    def start(self, name: str, _attributes: object) -> None:
        self._count += 1
        if self._count > XML_ELEMENTS_MAX or len(self._stack) >= XML_DEPTH_MAX:
            raise MalformedXML("The XML document has too many elements or is nested too deeply.")
        namespace, _, local = name.rpartition("}")
        if namespace not in ("", NAMESPACE):
            raise MalformedXML("The XML document uses an unknown namespace.")
        element = Element(local)
        if self._stack:
            self._stack[-1].children.append(element)
        else:
            self.root = element
        self._stack.append(element)
        self._text.append([])

    def end(self, _name: str) -> None:
        self._stack.pop().text = "".join(self._text.pop())

    def data(self, text: str) -> None:
        self._text[-1].append(text)

    def refuse(self, *_: object) -> None:
        raise MalformedXML("Document type declarations and processing instructions are not accepted.")


def parse(document: bytes, root: str) -> Element:
    """The root element of a request document; the S3 namespace and none are the same. Raises MalformedXML."""
    builder = _Builder()
    # Naming an encoding does not stop expat from switching to UTF-16, which it recognizes: text decoded here leaves it no choice.
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedXML("The XML document is not valid UTF-8.") from None
    if "\0" in text:
        raise MalformedXML
    parser = expat.ParserCreate(encoding="utf-8", namespace_separator="}")
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    parser.ProcessingInstructionHandler = builder.refuse
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except expat.ExpatError:
        raise MalformedXML from None
    if builder.root is None or builder.root.name != root:
        raise MalformedXML
    return builder.root
