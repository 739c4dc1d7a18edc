"""A parser of pages for tests: a tree of elements with their classes, attributes and texts."""

import dataclasses
import html.parser


@dataclasses.dataclass
class Element:
    tag: str
    attributes: dict
    children: list = dataclasses.field(default_factory=list)

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    @property
    def text(self):
        """All text inside, without markup."""
        parts = [part if isinstance(part, str) else part.text for part in self.children]
        return " ".join(" ".join(parts).split())

    def all(self, tag="", cls=""):
        """The elements inside with a tag and a class, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in ("", child.tag) and (not cls or cls in child.classes):
                    found.append(child)
                found += child.all(tag, cls)
        return found

    def one(self, tag="", cls=""):
        found = self.all(tag, cls)
        assert len(found) == 1, f"found {len(found)} elements {tag}.{cls}, expected one"
        return found[0]

    def by_id(self, name):
        found = [each for each in self.all() if each.attributes.get("id") == name]
        assert len(found) == 1, f"found {len(found)} elements with id {name}, expected one"
        return found[0]


class _Reader(html.parser.HTMLParser):
    VOID = frozenset({"meta", "link", "img", "source", "path", "use", "rect", "line"})

    def __init__(self):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attributes):
        element = Element(tag, dict(attributes))
        self.open[-1].children.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].children.append(Element(tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(text):
    """The root of a page; an element that is not closed or closed twice fails."""
    reader = _Reader()
    reader.feed(text)
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is not closed"
    return reader.root
