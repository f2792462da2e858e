"""A Query as text: with its noun, names in lower case, text between quotation marks."""

from typing import assert_never

from virtha.search.tree import And, Compare, FreeText, Node, Or, Pattern, Query, Relation
from virtha.search.values import show_value
from virtha.search.vocabulary import Vocabulary


def print_query(query: Query, vocabulary: Vocabulary) -> str:
    parts = [f"{query.noun}:"]
    if query.where is not None:
        parts.append(_node(query.where, query, vocabulary, nested=False))
    if query.sort is not None:
        parts.append(f"sortby {query.sort.field} {'desc' if query.sort.descending else 'asc'}")
    if query.page is not None:
        parts.append(f"page {query.page}")
    return " ".join(parts)


def _node(node: Node, query: Query, vocabulary: Vocabulary, *, nested: bool) -> str:
    match node:
        case And() | Or():
            word = " and " if isinstance(node, And) else " or "
            text = word.join(_node(term, query, vocabulary, nested=True) for term in node.terms)
            return f"({text})" if nested else text
        case Compare():
            field = vocabulary[node.related or query.noun].fields[node.field]
            name = f"{node.related}.{node.field}" if node.related else node.field
            return f"{name} {node.relation.value} {show_value(node.value, field)}"
        case FreeText():
            # Without the wildcards around it: free text is read with them.
            inner = Pattern(parts=node.pattern.parts[1:-1] or ("",))
            shown = show_value(inner, None)
            if node.related is None:
                assert node.relation is Relation.EQUAL
                return shown
            return f"{node.related} {node.relation.value} {shown}"
        case _:
            assert_never(node)
