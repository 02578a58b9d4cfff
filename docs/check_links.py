"""Check that every link within the built site leads to a page, file or anchor: ``python -m docs.check_links``.

Links to other sites are not followed: the check needs no network.
"""

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).parent / "_build/html"


class Page(HTMLParser):
    """The anchors of a page, and what it links to or shows.

    Attributes:
        anchors: The values of ``id`` and ``name``.
        links: The values of ``href``, ``src`` and ``data``.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag is called and where it leads."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src", "data") and value:
                self.links.append(value)


def broken_links(site: Path) -> list[str]:
    """Return a line for each link of the site's pages that leads nowhere in the site.

    Args:
        site: The folder that Sphinx wrote.

    Raises:
        FileNotFoundError: The folder holds no page.
    """
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise FileNotFoundError(f"{site}: expected the built site, got no page; run make docs")
    broken = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists():
                broken.append(f"{path.relative_to(site.resolve())}: {link} (no such file)")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                broken.append(f"{path.relative_to(site.resolve())}: {link} (no such anchor)")
    return broken


def main() -> None:
    """Print what is broken; exit with 1 if anything is."""
    parser = argparse.ArgumentParser(description="Check the links within the built site.")
    parser.add_argument("site", type=Path, nargs="?", default=SITE, help="folder that Sphinx wrote")
    site = parser.parse_args().site
    broken = broken_links(site)
    if broken:
        sys.exit("\n".join(broken) + f"\n{len(broken)} broken links in {site}")
    print(f"{site}: every link within the site leads somewhere")


if __name__ == "__main__":
    main()
