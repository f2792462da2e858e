"""The search language of lists: oVirt's, with parentheses and the fields that high availability needs. PURE.

    parse(text, vocabulary, noun) -> Query      # InvalidInput points at the column
    print_query(query) -> str                   # parse reads it back as the same Query

Which objects and fields there are, the caller says (``vocabulary.py``; the store's tables are one); what
a Query finds, the store says (``store/search_sql.py``).
"""

from virtha.search.parser import parse
from virtha.search.printer import print_query
from virtha.search.tree import Query
from virtha.search.vocabulary import Field, Kind, Noun, Vocabulary

__all__ = ["Field", "Kind", "Noun", "Query", "Vocabulary", "parse", "print_query"]
