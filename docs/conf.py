"""How Sphinx makes HTML and man pages of docs/: `./dev docs`. The pages are plain Markdown, read in a browser of the
repository as well, so what Sphinx needs beside them is said here."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs import commands
from guestnet import __version__

project = "guestnet"
author = "The guestnet authors"
copyright = author
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["Thumbs.db"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["deflist"]  # the options of the reference
myst_heading_anchors = 3
smartquotes = False  # --parent stays --parent
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]  # an ellipsis in a block is for the reader

html_theme = "furo"
html_title = f"guestnet {release}"
html_copy_source = False
html_show_sphinx = False

man_pages = [(f"reference/{name}", name, about, author, 1) for name, about in commands.titles().items()]

_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
_LINK = re.compile(r"\[([^]]+)\]\(((?:\.\./)+)[^)]*\)")
_PAGE = re.compile(r"\]\(([\w./-]+)\.md\)")


def _outside(_app: Any, name: str, text: list[str]) -> None:
    """What links to a file beside docs/, which a browser of the repository follows, are words here."""
    text[0] = _LINK.sub(lambda link: link[1] if len(link[2]) // 3 > name.count("/") else link[0], text[0])


def _contents(_app: Any, name: str, text: list[str]) -> None:
    """The index is a list of links below headings; the navigation is made of the same."""
    if name not in ("index", "reference/guestnet"):
        return
    about, *parts = _HEADING.split(text[0])
    for title, part in zip(["", *parts[::2]], [about, *parts[1::2]], strict=True):
        pages = list(dict.fromkeys(_PAGE.findall(part)))
        if pages:
            caption = [f":caption: {title}"] if title and name == "index" else []
            # a man page would have the pages below it in it
            lines = ["\n````{only} html", "```{toctree}", ":hidden:", *caption, "", *pages, "```", "````\n"]
            text[0] += "\n".join(lines)


def _words_alone(app: Any, tree: Any, _name: str) -> None:
    """A man page has no address that another could show: a link to it is its words."""
    if app.builder.name == "man":
        for link in [node for node in tree.findall() if node.tagname == "reference"]:
            if not link.get("refuri"):
                link.replace_self(link.children)


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls first."""
    app.connect("source-read", _outside)
    app.connect("source-read", _contents)
    app.connect("doctree-resolved", _words_alone)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
