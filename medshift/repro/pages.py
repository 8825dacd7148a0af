"""Make the HTML of a notebook fit to be shown without a network and away from the machine it was made on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from medshift.repro.folding import fold

if TYPE_CHECKING:
    from bs4 import Tag

NO_ALT = "A picture without a description."
FORBIDDEN = (
    "script", "noscript", "style", "link", "meta", "base", "iframe", "frame", "object", "embed", "applet", "audio",
    "video", "source", "track", "form", "template",
)  # fmt: skip
LOADING = ("src", "srcset", "data", "poster", "background", "action", "formaction", "ping", "xlink:href", "href")
LINKS = ("http", "https", "mailto")
# Home folders of any machine, then folders of any other absolute path; never a quotient, a URL or a closing tag.
HOME = re.compile(r"(?<![\w.])/(?:home|Users)/[\w.@+-]+")
ABSOLUTE = re.compile(r"(?<![\w.</~)\]…-])/(?:[\w.@+-]+/)+")
OUTSIDE = re.compile(r"url\s*\(\s*[\"']?\s*(?!#)|@import|\\", re.I)  # in an attribute: CSS that loads, or may


def tidy(text: str) -> str:
    """The text without the folders of absolute paths, which name a machine and its user."""
    text = re.sub(r"file:/+", "/", text)
    text = HOME.sub("~", re.sub(rf"(?<![\w.]){re.escape(str(Path.home()))}(?![\w.-])", "~", text))
    return ABSOLUTE.sub("…/", text)


def clean(html: str, pages: Mapping[str, str]) -> str:
    """A notebook's HTML with nothing in it that runs, loads or names this machine, and with solutions folded.

    Pictures are kept where their bytes lie in the page, and get a description where they have none; others leave their
    description behind. Links to the web stay, those to other notebooks lead to their pages, others become plain text.

    Args:
        html: of the body.
        pages: notebook's stem -> file name of its page.
    """
    from bs4 import BeautifulSoup, Comment

    soup = BeautifulSoup(html, "html.parser")
    fold(soup)
    for comment in soup.find_all(string=lambda text: isinstance(text, Comment)):
        comment.extract()
    for tag in soup.find_all(FORBIDDEN):
        tag.decompose()
    for tag in soup.find_all(True):
        target = str(tag.get("href", ""))
        for name in list(tag.attrs):
            value = str(tag[name])
            own = name in LOADING and not (tag.name == "img" and name == "src" and value.startswith("data:image/"))
            css = name not in ("alt", "title", "src") and OUTSIDE.search(value)
            if name.startswith("on") or own or css:
                del tag[name]
        if tag.name == "a":
            _relink(tag, target, pages)
        elif tag.name == "img":
            tag["alt"] = str(tag.get("alt", "")).strip() or NO_ALT
            if not tag.get("src"):
                tag.replace_with(f"[{tag['alt']}]")
        elif target.startswith("#"):  # parts of a drawing that refer to each other
            tag["href"] = target
    for text in soup.find_all(string=True):
        if (short := tidy(str(text))) != text:
            text.replace_with(short)
    for tag in soup.find_all(lambda tag: tag.get("title") or tag.get("alt")):
        for name in ("title", "alt"):
            if name in tag.attrs:
                tag[name] = tidy(str(tag[name]))
    return str(soup)


def _relink(tag: Tag, target: str, pages: Mapping[str, str]) -> None:
    try:
        parts = urlsplit(target)
    except ValueError:
        parts = urlsplit("")
    path = Path(unquote(parts.path))
    if target.startswith("#") or parts.scheme in LINKS:
        tag["href"] = target
    elif not parts.scheme and not parts.netloc and path.suffix == ".ipynb" and path.stem in pages:
        tag["href"] = pages[path.stem] + (f"#{parts.fragment}" if parts.fragment else "")
    elif not tag.get("id"):
        tag.unwrap()
