"""Other people's XML: parsed safely, changed in one place, written back with all the rest as it was.

A DOM, for ElementTree renames namespace prefixes and drops comments. Our own writer, for minidom's
writes line ends in attributes raw, and the next parser turns them into blanks.
"""

from typing import Any
from xml.dom.minidom import Document, Element, Node
from xml.etree.ElementTree import Element as Built
from xml.parsers.expat import ExpatError

from defusedxml.common import DefusedXmlException
from defusedxml.minidom import parseString

from virtha.model.errors import InvalidInput

XML_BYTES_MAX = 4 << 20
DEPTH_MAX = 100
"""libxml2 takes 256 itself; a real domain has 8."""


def parse_domain(text: str) -> Document:
    """Raises InvalidInput (field ``xml``): not well formed, no ``<domain>``, or built to hurt."""
    if len(text) > XML_BYTES_MAX:
        raise InvalidInput(f"more than {XML_BYTES_MAX} characters", field="xml")
    try:
        document: Document = parseString(text, forbid_dtd=True)
    except (ExpatError, DefusedXmlException, LookupError, UnicodeError, ValueError) as error:
        raise InvalidInput(f"can't be read as XML: {error}", field="xml") from error
    root = document.documentElement
    if root is None or root.tagName != "domain":
        raise InvalidInput(
            f"begins with <{root.tagName if root else ''}>",
            field="xml",
            allowed=("<domain>",),
            fix="give a domain's definition, as `virsh dumpxml --inactive NAME` prints it",
        )
    _check_depth(root)
    return document


def _check_depth(root: Element) -> None:
    waiting: list[tuple[Element, int]] = [(root, 1)]
    while waiting:
        element, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise InvalidInput(f"nested deeper than {DEPTH_MAX} elements", field="xml")
        waiting.extend((child, depth + 1) for child in elements(element))


def root_of(document: Document) -> Element:
    root = document.documentElement
    assert root is not None, "parse_domain has checked it"
    return root


def elements(parent: Node, tag: str | None = None) -> list[Element]:
    """Child elements in order; without a namespace where ``tag`` is given."""
    return [
        child
        for child in parent.childNodes
        if isinstance(child, Element)
        and (tag is None or (child.tagName == tag and not child.namespaceURI))
    ]


def first(parent: Node | None, *path: str) -> Element | None:
    """The first element down that path."""
    for tag in path:
        found = elements(parent, tag) if parent is not None else []
        parent = found[0] if found else None
    return parent if isinstance(parent, Element) else None


def text_of(element: Node | None) -> str:
    """The element's own text, without blanks around it; empty where there is none."""
    if element is None:
        return ""
    parts = [
        child.data
        for child in element.childNodes
        if child.nodeType in (Node.TEXT_NODE, Node.CDATA_SECTION_NODE)
    ]
    return "".join(parts).strip()


def attribute(element: Element | None, name: str) -> str:
    """Empty where the element or the attribute is missing."""
    return element.getAttribute(name) if element is not None else ""


def set_text(element: Element, text: str) -> None:
    document = _document_of(element)
    for child in list(element.childNodes):
        element.removeChild(child)
    element.appendChild(document.createTextNode(text))


def insert(parent: Element, new: Element, *, before: Element | None = None) -> None:
    """Put ``new`` into ``parent``, on a line of its own where its neighbours stand on theirs."""
    document = _document_of(parent)
    if before is not None:
        parent.insertBefore(new, before)
        indent = _indent_before(new)
        if indent:
            parent.insertBefore(document.createTextNode(indent), before)
        return
    tail = parent.lastChild
    closing = tail if _is_blank(tail) else None
    siblings = elements(parent)
    indent = _indent_before(siblings[0]) if siblings else ""
    if not siblings:
        # An element that was empty gets lines only if it stands on a line itself.
        outer = _indent_before(parent)
        if outer:
            indent = outer + "  "
            if closing is None:
                closing = parent.appendChild(document.createTextNode(outer))
    if closing is not None:
        parent.insertBefore(new, closing)
    else:
        parent.appendChild(new)
    if indent:
        parent.insertBefore(document.createTextNode(indent), new)


def remove(element: Element) -> None:
    """Take the element out, with the blanks before it, so that no empty line is left."""
    parent: Any = element.parentNode
    assert parent is not None, "only elements inside the domain are removed"
    blank = element.previousSibling
    if blank is not None and _is_blank(blank):
        parent.removeChild(blank)
    parent.removeChild(element)
    if not elements(parent) and all(_is_blank(child) for child in parent.childNodes):
        for child in list(parent.childNodes):
            parent.removeChild(child)


def imported(document: Document, built: Built, *, prefix: str = "") -> Element:
    """An element made by ``virtha.domainxml.elements`` as a node of this document.

    A namespaced one (ours) declares ``prefix`` itself.
    """
    if built.tag.startswith("{"):
        namespace, _, local = built.tag[1:].partition("}")
        assert prefix, "a namespaced element needs a prefix"
        node = document.createElementNS(namespace, f"{prefix}:{local}")
        node.setAttribute(f"xmlns:{prefix}", namespace)
    else:
        node = document.createElement(built.tag)
    for name, value in built.attrib.items():
        node.setAttribute(name, value)
    if built.text is not None and built.text.strip():
        node.appendChild(document.createTextNode(built.text))
    for child in built:
        node.appendChild(imported(document, child))
    return node


def cloned(document: Document, element: Element) -> Element:
    """A copy of another document's element."""
    copy = document.importNode(element, True)
    assert isinstance(copy, Element), "a clone has its original's kind"
    return copy


def written(document: Document) -> str:
    """The whole document without its XML declaration (it is text now, not bytes)."""
    return "".join(_node(child) + "\n" for child in document.childNodes)


def _node(node: Any) -> str:
    if isinstance(node, Element):
        attributes = "".join(f" {name}={_quoted(value)}" for name, value in node.attributes.items())
        if not node.childNodes:
            return f"<{node.tagName}{attributes}/>"
        inner = "".join(_node(child) for child in node.childNodes)
        return f"<{node.tagName}{attributes}>{inner}</{node.tagName}>"
    if node.nodeType == Node.CDATA_SECTION_NODE:
        return f"<![CDATA[{node.data}]]>"
    if node.nodeType == Node.TEXT_NODE:
        return _escaped(node.data)
    if node.nodeType == Node.COMMENT_NODE:
        return f"<!--{node.data}-->"
    assert node.nodeType == Node.PROCESSING_INSTRUCTION_NODE, "DTDs are refused when parsing"
    return f"<?{node.target} {node.data}?>"


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("\r", "&#13;")


def _quoted(text: str) -> str:
    text = _escaped(text).replace("\n", "&#10;").replace("\t", "&#9;")
    return '"' + text.replace('"', "&quot;") + '"' if "'" in text else f"'{text}'"


def _is_blank(node: Any) -> bool:
    return node is not None and node.nodeType == Node.TEXT_NODE and not node.data.strip()


def _indent_before(element: Element) -> str:
    """The line end and blanks before it, as far as it stands on a line of its own."""
    before: Any = element.previousSibling
    if not _is_blank(before):
        return ""
    line_end = before.data.rfind("\n")
    return before.data[line_end:] if line_end >= 0 else ""


def _document_of(node: Node) -> Document:
    document = node.ownerDocument
    assert isinstance(document, Document), "every node belongs to one"
    return document
