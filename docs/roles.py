"""A hook of the site. Rule: knows how docstrings are written, and makes no text of its own.

Docstrings name other objects in Sphinx's way, ``:func:`name` ``, which Markdown shows as a word between
colons and the name.
"""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:func|class|data|meth|mod|attr|exc):(?=<code>)")


def on_page_content(html: str, **_: object) -> str:
    """The page without those words."""
    return _ROLE.sub("", html)
