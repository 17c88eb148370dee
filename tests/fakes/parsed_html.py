"""A page as its reader and its browser take it."""

from html.parser import HTMLParser


class Parsed(HTMLParser):
    """A page's tags with their attributes in order, and the words that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden |= tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden &= tag != "style"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self._words)

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]
