"""Where the parts of a drawing run: the place of each path, its badge, and one colour per place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from yggdrasill.draw.lettering import shortened, width_of
from yggdrasill.draw.palette import place_hues
from yggdrasill.draw.svg import Picture, tag, text, tooltip
from yggdrasill.errors import InvalidConfig

__all__ = ["Badge", "Places", "draw_badge", "host_of"]


@dataclass(frozen=True)
class Badge:
    """The name of a place and its hue."""

    place: str
    hue: str


class Places:
    """Answers where a path runs, most specific first, and remembers every place it named, for the legend."""

    def __init__(self, places: Mapping[str, str], root: str) -> None:
        self._places = dict(places)
        self._root = root
        self._names = sorted(set(self._places.values()))
        self._seen: set[str] = set()

    def of(self, path: tuple[str, ...], endpoint: str | None = None) -> str | None:
        """The place of ``path`` by its own key (whole path, path below the root's id, or last id), else its url's host, else its parent's."""
        for key in ("/".join(path), "/".join((self._root, *path)), path[-1] if path else self._root):
            if key in self._places:
                return self._places[key]
        if endpoint:
            return host_of(endpoint)
        return self.of(path[:-1]) if path else None

    def badge(self, path: tuple[str, ...], endpoint: str | None = None) -> Badge | None:
        """The badge of a part that runs elsewhere than what encloses it; None if it need not be said again."""
        place = self.of(path, endpoint)
        if place is None or (path and place == self.of(path[:-1])):
            return None
        self._seen.add(place)
        return Badge(place, self._hue(place))

    def hue(self, path: tuple[str, ...], endpoint: str | None = None) -> str:
        """The hue of the place of a path; grey if it has none."""
        place = self.of(path, endpoint)
        return "grey" if place is None else self._hue(place)

    def legend(self) -> list[Badge]:
        """A badge for every place that was drawn."""
        hues = place_hues(self._names)
        return [Badge(name, hues[name]) for name in self._names if name in self._seen]

    def _hue(self, place: str) -> str:
        if place not in self._names:
            self._names.append(place)
        return place_hues(self._names)[place]


def host_of(url: str) -> str:
    """``host:port`` of an endpoint's url, never its user name, password or path; `InvalidConfig` if it is none."""
    try:
        authority = urlsplit(url if "//" in url else f"//{url}").netloc
    except ValueError as error:
        raise InvalidConfig(f"an endpoint_url is no url ({error}); write one such as 'http://host:8188'") from error
    return authority.rpartition("@")[2] or "endpoint"


def draw_badge(badge: Badge) -> Picture:
    """A small filled pill with the name of the place."""
    words = shortened(badge.place, 30, keep_end=True)
    width = width_of(words, 10, bold=True) + 24
    pill = tag("rect", class_=f"y-{badge.hue}", width=width, height=17, rx=8.5)
    dot = tag("circle", class_="y-light", cx=10, cy=8.5, r=3)
    label = text(17, 12, words, "y-t y-small y-strong y-light")
    return Picture(width, 17, tag("g", tooltip(f"runs at {badge.place}"), pill, dot, label))
