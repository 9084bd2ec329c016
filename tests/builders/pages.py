"""The page of a run as a reader sees it."""

import html
import re
from pathlib import Path

from cxr_ray.report.document import write_report


def page_of(out: str | Path) -> str:
    """Draws the run's page; its HTML."""
    write_report(str(out))
    return Path(out, "report.html").read_text()


def text_of(page: str) -> str:
    """The text of a page, of pictures too but for the numbers of their axes, one space between words."""
    page = re.sub(r'(?s)<a class="term"[^>]*>(.*?)</a>', r"\1", page)
    body = re.sub(r"(?s)<style.*?</style>|<head>.*?</head>|<text[^>]*data-tick[^>]*>.*?</text>", " ", page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())
