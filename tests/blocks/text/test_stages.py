"""The text blocks of the five stages."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest

from yggdrasill.blocks.procedural.configuration import read_terrain
from yggdrasill.blocks.text.happenings import ACTION_OPENINGS, HAPPENINGS
from yggdrasill.blocks.text.themes import find_place, find_themes
from yggdrasill.executor import enter_run
from yggdrasill.foundation import BlockRegistry

TOLD = [(theme, text) for theme, (_, texts) in HAPPENINGS.items() for text in texts]


def run(block_type: str, inputs: dict[str, Any], **config: Any) -> dict[str, Any]:
    with enter_run(seed=11):
        return BlockRegistry().build({"block_type": block_type, **config}).run(inputs)


def architect(text: str, world: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    configuration = run("text/architect", {"happening": text, "world": world or {}}, **config)["configuration"]
    assert isinstance(configuration, dict)
    return configuration


def themes(text: str) -> list[str]:
    return [mention.theme for mention in find_themes(text)]


@pytest.mark.parametrize("theme, text", TOLD, ids=[f"{theme}-{index % 3}" for index, (theme, _) in enumerate(TOLD)])
def test_the_architect_finds_the_theme_of_each_text_of_development(theme: str, text: str) -> None:
    assert themes(text.format(where="the north-east")) == [theme]


@pytest.mark.parametrize("text", ACTION_OPENINGS)
def test_the_opening_of_an_action_mentions_no_theme(text: str) -> None:
    assert themes(text) == []


def test_words_select_themes_and_adjectives_their_strength() -> None:
    found = {
        mention.theme: mention for mention in find_themes("A great volcano rises in the south-west, but no storms; then a mild winter.")
    }
    assert set(found) == {"volcano", "cold"}
    assert (found["volcano"].strength, found["cold"].strength) == (1.6, 0.5)
    assert found["volcano"].place == (0.27, 0.73)


@pytest.mark.parametrize(
    "text, place",
    [
        ("in the north", (0.5, 0.27)),
        ("the eastern coast", (0.73, 0.5)),
        ("North West", (0.27, 0.27)),
        ("at the heart", (0.5, 0.5)),
        ("here", None),
    ],
)
def test_places_are_read_from_words(text: str, place: tuple[float, float] | None) -> None:
    assert find_place(text) == place


def test_a_new_world_follows_its_story() -> None:
    islands = architect("It begins.", {"initial_story": "An archipelago in a cold sea"}, seed=4)
    assert islands["continents"] == 14
    assert islands["temperature"] < 5
    assert islands["seed"] == 4
    desert = architect("Dunes, and jagged mountains behind them")
    assert desert["rainfall"] < 500
    assert desert["mountains"] > 0.7


def test_the_seed_comes_from_config_then_world_then_run() -> None:
    assert architect("x", {"seed": 8}, seed=4)["seed"] == 4
    assert architect("x", {"seed": 8})["seed"] == 8
    assert architect("x")["seed"] == architect("x")["seed"]


def test_a_later_episode_changes_the_last_configuration_and_keeps_the_world() -> None:
    first = architect("An archipelago", size=64)
    world = {"chronicle": [{"episode": 1, "configuration": first}]}
    before = copy.deepcopy(world)
    flooded = architect("The sea rises.", world)
    assert flooded["sea_level"] > first["sea_level"] + 50
    burning = architect("A volcano in the north.", world)
    assert [feature["kind"] for feature in burning["features"]] == ["volcano"]
    assert burning["features"][0]["y"] < 0.4
    assert {name: flooded[name] for name in ("seed", "size", "continents", "land")} == {
        name: first[name] for name in ("seed", "size", "continents", "land")
    }
    assert world == before


def test_a_thousand_floods_stay_within_the_ranges_of_a_terrain() -> None:
    world: dict[str, Any] = {"chronicle": [{"episode": 1, "configuration": architect("Hot and wet islands")}]}
    for _ in range(60):
        world = {
            "chronicle": [{"episode": 1, "configuration": architect("A huge flood, a volcano, an earthquake, heat, rain, erosion.", world)}]
        }
    terrain = read_terrain(world["chronicle"][0]["configuration"], "test")
    assert terrain.sea_level == 600.0
    assert len(terrain.features) == 48


def test_the_philosopher_states_what_was_measured(turn: Any) -> None:
    description = turn({}, 0)["description"]
    measures, text = description["measures"], description["text"]
    for fact in (
        f"{measures['land_km2']:,} km²",
        f"{measures['peaks'][0]['height_m']:,} m",
        measures["peaks"][0]["where"],
        f"{measures['rivers']['longest_km']:,} km",
    ):
        assert fact in text
    for name in list(measures["biomes"])[:2]:
        assert name in text


def test_the_author_states_what_changed_and_whether_it_was_announced(turn: Any) -> None:
    first = turn({"initial_story": "A continent"}, 0)
    second = turn(first["world"], 1, action="Let a huge flood come")
    before, after = first["description"]["measures"]["land_share"], second["description"]["measures"]["land_share"]
    assert after < before
    assert f"{before * 100:.1f} %" in second["account"]["text"]
    assert f"{after * 100:.1f} %" in second["account"]["text"]
    assert {"what": "land_share", "before": before, "after": after} in second["account"]["changes"]


def test_an_announcement_without_effect_is_reported_as_such(turn: Any) -> None:
    first = turn({"initial_story": "A continent"}, 0)
    happening = {"episode": 2, "title": "The Rising Water", "text": "The sea rises.", "action": None}
    same = run("text/narrate", {"happening": happening, "description": first["description"], "world": first["world"]})["account"]
    assert same["changes"] == []
    assert any(words in same["text"] for words in ("hardly a mark", "saw little of it", "without a trace"))


def test_places_keep_their_names(turn: Any) -> None:
    first = turn({"initial_story": "Mountains"}, 0)
    second = turn(first["world"], 1, action="Nothing at all")
    names = {place["name"] for place in first["account"]["places"] if place["kind"] == "peak"}
    assert names & {place["name"] for place in second["account"]["places"]}
    assert len({place["name"] for place in second["world"]["places"]}) == len(second["world"]["places"])


def test_an_author_with_only_text_writes_an_account() -> None:
    account = run("text/narrate", {"happening": "Fog.", "description": "A white page."})["account"]
    assert "A white page." in account["text"]
    assert (account["episode"], account["places"], account["changes"]) == (1, [], [])


def test_the_chronicle_keeps_every_episode_and_does_not_change_the_old_content(turn: Any) -> None:
    content = {"title": "Tor", "initial_story": "Islands", "glossary": {"tor": "a rock"}, "style": "dry"}
    kept = copy.deepcopy(content)
    first = turn(content, 0)
    second = turn(first["world"], 1)
    assert content == kept
    assert len(first["world"]["chronicle"]) == 1
    assert [entry["episode"] for entry in second["world"]["chronicle"]] == [1, 2]
    assert {name: second["world"][name] for name in kept} == kept
    entry = second["world"]["chronicle"][1]
    for name in ("happening", "configuration", "description", "account"):
        assert entry[name] == second[name]
    assert entry["images"] == [[1, 64, 64, 3]]


def test_a_world_without_a_title_gets_one(turn: Any) -> None:
    assert turn({}, 0)["world"]["title"].startswith("The Chronicle of ")


def test_the_first_episode_has_the_story_and_the_action() -> None:
    happening = run("text/develop", {"world": {"title": "Tor", "initial_story": "there is a rock"}, "action": "Plant a tree"})["happening"]
    assert happening["episode"] == 1
    assert happening["text"].startswith("There is a rock.")
    assert happening["text"].endswith("Plant a tree.")
    assert (happening["action"], happening["title"]) == ("Plant a tree", "Plant a tree")


def test_an_action_replaces_the_random_event() -> None:
    world = {"chronicle": [{"episode": 3, "happening": {"text": "The sea rises."}}]}
    happening = run("text/develop", {"world": world, "action": "  let it snow in the north "})["happening"]
    assert happening["episode"] == 4
    assert themes(happening["text"]) == ["cold"]
    assert happening["action"] == "let it snow in the north"


def test_equal_seeds_give_equal_evolution_without_actions() -> None:
    def happen(seed: int, episode: int) -> dict[str, Any]:
        world = {"chronicle": [{"episode": episode, "happening": {"text": "The sea rises."}}]}
        with enter_run(seed=seed):
            opened: dict[str, Any] = BlockRegistry().build({"block_type": "text/develop"}).run({"world": world})["happening"]
        return opened

    assert happen(1, 5) == happen(1, 5)
    texts = {happen(seed, 5)["text"] for seed in range(12)}
    assert len(texts) > 4
    assert all(len(themes(text)) == 1 and themes(text) != ["flood"] for text in texts)


def test_ten_episodes_have_different_texts(turn: Any) -> None:
    content: dict[str, Any] = {"title": "Tor", "initial_story": "Islands under a warm wind"}
    texts, happened = [], []
    for number in range(10):
        done = turn(content, number)
        content = done["world"]
        texts.append(done["account"]["text"])
        happened.append(done["happening"]["text"])
    assert len(set(texts)) == 10
    assert len(set(happened)) == 10
    assert all(themes(a) != themes(b) for a, b in pairwise(happened[1:]))
    endings = [text.rsplit(". ", 1)[-1] for text in texts]
    assert all(a != b for a, b in pairwise(endings))


def test_two_runs_write_equal_texts(turn: Any) -> None:
    one, two = turn({"initial_story": "Isles"}, 0), turn({"initial_story": "Isles"}, 0)
    for name in ("happening", "configuration", "description", "account"):
        assert one[name] == two[name]


def test_an_action_in_the_first_episode_keeps_the_seed() -> None:
    world = {"initial_story": "Two lands and a sea"}
    with enter_run(seed=4):
        plain = run("text/architect", {"happening": {"text": "Two lands and a sea."}, "world": world})["configuration"]
        acted = run("text/architect", {"happening": {"text": "Two lands and a sea. A volcano in the east."}, "world": world})[
            "configuration"
        ]
    assert {**acted, "features": []} == plain
    assert [feature["kind"] for feature in acted["features"]] == ["volcano"]


def test_mountains_of_a_new_world_are_where_the_text_places_them() -> None:
    def ranges(text: str) -> list[dict[str, Any]]:
        with enter_run(seed=4):
            made = run("text/architect", {"happening": {"text": text}})["configuration"]["features"]
        return [feature for feature in made if feature["kind"] == "range"]

    (north,) = ranges("There are mountains in the north.")
    assert north["y"] < 0.4
    assert ranges("There are mountains.") == []


def test_a_long_action_is_shortened_between_words_for_the_title() -> None:
    def title(action: str) -> str:
        world = {"chronicle": [{"episode": 1, "happening": {"text": "The sea rises."}}]}
        named: str = run("text/develop", {"world": world, "action": action})["happening"]["title"]
        return named

    assert title("let there be a lake in the South.") == "Let there be a lake in the South"
    assert title("let the rivers of the north find the rivers of the south and go on together") == (
        "Let the rivers of the north find the rivers of the south …"
    )
