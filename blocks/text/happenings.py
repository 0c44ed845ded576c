"""Titles and sentences per theme, for events that happen without an action. Each sentence mentions only its theme."""

from __future__ import annotations

__all__ = ["ACTION_OPENINGS", "BEGINNINGS", "FALLBACK_BEGINNING", "HAPPENINGS"]

#: Theme -> (titles, texts). ``{where}`` is a part of the map.
HAPPENINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "flood": (
        ("The Rising Water", "When the Sea Came In", "The Drowned Fields"),
        (
            "Year after year the sea rises, and the coasts learn to step back.",
            "A flood comes that does not leave again. Harbours become reefs, and roads end in the surf.",
            "Rising waters find every bay and knock at the doors behind it.",
        ),
    ),
    "ebb": (
        ("The Long Ebb", "New Shores", "What the Sea Gave Back"),
        (
            "The sea retreats, and fishermen walk where they used to row.",
            "A long ebb begins: shoals turn to shores, and shores to fields.",
            "The ocean withdraws league by league and leaves its floor to the gulls.",
        ),
    ),
    "volcano": (
        ("The Fire in {Where}", "A Mountain of Ash", "The Night that Glowed"),
        (
            "In {where} the crust opens and a volcano builds itself out of the dark.",
            "For seven years {where} glows at night: lava piles up until it has a name.",
            "An eruption in {where} throws up a cone that ships will steer by.",
        ),
    ),
    "comet": (
        ("The Guest from the Sky", "The Scar", "A Second Sun"),
        (
            "A comet comes down in {where}, and the morning after there is a ring where there was ground.",
            "Over {where} a meteor draws one white line and ends in thunder.",
            "One night a falling star chooses {where} and leaves a bowl a province wide.",
        ),
    ),
    "sinking": (
        ("The Ground Gives Way", "The Hollow", "A Door in the Earth"),
        (
            "In {where} a rift opens slowly, and what lay between its walls is let down.",
            "The ground sinks in {where}, a hand's breadth every year, and nobody can say what it stood on.",
            "A province in {where} collapses quietly; its bells are heard until the last day.",
        ),
    ),
    "uplift": (
        ("The Shaking Years", "The Earth Stands Up", "A Wall against the Wind"),
        (
            "Earthquakes walk through {where} and stack the ground upon itself.",
            "In {where} the land rises, fold behind fold, and villages find themselves on terraces.",
            "An upheaval in {where} lifts whole counties towards the clouds.",
        ),
    ),
    "drought": (
        ("The Thirsty Years", "Dust", "The Empty Wells"),
        (
            "A drought settles in, and the sky forgets its one trade.",
            "The wells go dry one after another, and the colour of the maps changes with them.",
            "Year upon year is parched; the grass keeps its seeds and waits.",
        ),
    ),
    "cold": (
        ("The White Years", "The Long Winter", "When the Harbours Froze"),
        (
            "The winters grow longer until they meet each other.",
            "Frost comes early and stays, and the northward roads are given up.",
            "Glaciers put out their tongues and taste the pastures.",
        ),
    ),
    "warm": (
        ("The Soft Years", "The Great Thaw", "Open Passes"),
        (
            "A thaw begins that nobody remembers asking for, and the passes stay open all year.",
            "The air turns warm; vines climb where only moss used to.",
            "Summers lengthen, and the white caps of the horizon draw back.",
        ),
    ),
    "rain": (
        ("The Grey Abundance", "The Singing Roofs", "The Years of Plenty"),
        (
            "Rain comes in from the ocean and stays for a generation.",
            "The wind brings storms with full hands, one behind the other.",
            "Forests walk out of their corners and take the commons.",
        ),
    ),
    "erosion": (
        ("The Patient Years", "What Wind and Time Took", "The Softening"),
        (
            "Nothing happens, and it happens for so long that the heights are worn to other shapes.",
            "Erosion does its work: grain by grain, the heights are carried down to the coast.",
            "The crags weathered, the screes grew, and the maps had to be drawn again.",
        ),
    ),
    "rivers": (
        ("The Finding of Ways", "The Water Roads", "Where Springs Meet"),
        (
            "The rivers change their beds and find each other.",
            "Every spring cuts a little deeper, and small streams join into one with a name.",
            "New valleys open inland, and water takes them the same day.",
        ),
    ),
}

#: The opening of an episode with an action; without the words of any theme.
ACTION_OPENINGS = (
    "A will from outside reaches the world, and the world listens.",
    "This time it is not chance that decides.",
    "Somebody speaks, and what is spoken begins to be true.",
    "A wish is laid upon the map like a hand.",
)

#: Titles of the first episode.
BEGINNINGS = ("The First Morning", "Before the First Name", "The Opening of the Map")

#: The text of the first episode if the world has no initial story.
FALLBACK_BEGINNING = (
    "Out of the dark comes a world of two coasts and many bays, with mountains in its back and rivers that look for the shore.",
    "There is water first, then stone, then an archipelago with rivers and clouds that belong to nobody yet.",
    "A continent lies in the sea like a sleeping animal: mountains for a spine, forests for a coat.",
)
