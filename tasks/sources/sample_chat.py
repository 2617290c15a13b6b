"""`sample://chat`: short plain questions and answers, generated with a seed.

Facts from small tables, greetings, rewrites and lists, in several wordings each; answers follow from
the question, so a held-out prompt asks for what was learnt and not for what was memorised.

Planted bad rows (see planted.py), in turn: an empty assistant turn, a stray end-of-turn token, a
U+FFFD, an unfilled `{{name}}`, an exact duplicate of the row before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tasks.sources.planted import Row, duplicate, empty_answer, placeholder, replacement_character, stray_end_token

Exchange = tuple[str, str]


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(one, other) for one, _, other in (pair.partition(":") for pair in text.split("; "))]


def _words(text: str) -> list[str]:
    return text.split()


_CAPITALS = _pairs(
    "France:Paris; Italy:Rome; Spain:Madrid; Portugal:Lisbon; Germany:Berlin; Austria:Vienna; Poland:Warsaw; "
    "Norway:Oslo; Sweden:Stockholm; Finland:Helsinki; Denmark:Copenhagen; Ireland:Dublin; Greece:Athens; "
    "Egypt:Cairo; Kenya:Nairobi; Japan:Tokyo; China:Beijing; Thailand:Bangkok; Peru:Lima; Chile:Santiago; "
    "Cuba:Havana; Canada:Ottawa; Russia:Moscow; Turkey:Ankara; Iran:Tehran; Hungary:Budapest; Belgium:Brussels"
)
_OPPOSITES = _pairs(
    "hot:cold; big:small; fast:slow; light:dark; happy:sad; full:empty; early:late; hard:soft; wet:dry; rich:poor; "
    "young:old; open:closed; loud:quiet; clean:dirty; strong:weak; deep:shallow; wide:narrow; high:low"
)
_SOUNDS = _pairs("dog:barks; cat:meows; cow:moos; duck:quacks; lion:roars; sheep:bleats; horse:neighs; snake:hisses")
_PAST = _pairs(
    "walk:walked; play:played; cook:cooked; sing:sang; swim:swam; run:ran; write:wrote; read:read; sleep:slept; "
    "eat:ate; drive:drove; work:worked; dance:danced; wait:waited"
)
_NAMES = _words(
    "Anna Ben Carla David Emma Frank Grace Henry Iris Jack Karen Leo Maria Nina Oscar Paul Rosa Sam Tina Victor "
    "Wendy Yusuf Zoe Ahmed Bianca Chen Diego Elena Farid Hana"
)
_PLACES = ["park", "office", "garden", "school", "station", "market", "kitchen", "library"]
_THINGS = ["the report", "the keys", "a map", "some water", "the bill", "a towel", "the menu", "a pen", "your address"]
_LISTS = {
    "fruits": _words("apples bananas pears plums grapes oranges cherries"),
    "colours": _words("red blue green yellow black white purple"),
    "animals": _words("dogs cats horses birds lions sheep ducks"),
    "drinks": _words("water tea coffee milk juice lemonade cocoa"),
    "vegetables": _words("carrots onions beans peas potatoes leeks spinach"),
    "tools": ["a hammer", "a saw", "a drill", "a wrench", "a file", "a level", "a ladder"],
}


def _capital(draw: random.Random) -> Exchange:
    country, city = draw.choice(_CAPITALS)
    wording = draw.choice(
        [
            "What is the capital of {}?",
            "Name the capital of {}.",
            "Which city is the capital of {}?",
            "{}: its capital?",
        ]
    )
    return wording.format(country), f"The capital of {country} is {city}."


def _country(draw: random.Random) -> Exchange:
    country, city = draw.choice(_CAPITALS)
    wording = draw.choice(["Which country is {} the capital of?", "{} is the capital of which country?"])
    return wording.format(city), f"{city} is the capital of {country}."


def _opposite(draw: random.Random) -> Exchange:
    one, other = draw.choice([pair[::step] for pair in _OPPOSITES for step in (1, -1)])
    wording = draw.choice(["What is the opposite of {}?", "Give the opposite of {!r}.", "{} is the opposite of what?"])
    return wording.format(one).capitalize(), f"The opposite of {one} is {other}."


def _sound(draw: random.Random) -> Exchange:
    animal, sound = draw.choice(_SOUNDS)
    wording = draw.choice(["What sound does a {} make?", "What does a {} do when it is loud?"])
    return wording.format(animal), f"A {animal} {sound}."


def _greeting(draw: random.Random) -> Exchange:
    name = draw.choice(_NAMES)
    wording = draw.choice(["Hi, I am {}.", "Hello, my name is {}.", "Good morning, {} here.", "{} speaking, hello."])
    return wording.format(name), f"Hello {name}, how can I help you?"


def _farewell(draw: random.Random) -> Exchange:
    name = draw.choice(_NAMES)
    wording = draw.choice(["Thanks, that is all. {}", "Goodbye! Yours, {}", "Thank you for the help, {}."])
    return wording.format(name), f"You are welcome, {name}. Goodbye!"


def _polite(draw: random.Random) -> Exchange:
    verb, thing = draw.choice(["Send me", "Give me", "Bring me", "Show me"]), draw.choice(_THINGS)
    wording = draw.choice(["Make this polite: {} {}.", "Say it politely: {} {}."])
    return wording.format(verb, thing), f"Could you please {verb.lower()} {thing}?"


def _past(draw: random.Random) -> Exchange:
    verb, past = draw.choice(_PAST)
    name, place = draw.choice(_NAMES), draw.choice(_PLACES)
    wording = draw.choice(["Put this in the past: {} {} in the {}.", "Past tense: {} {} in the {}."])
    return wording.format(f"{name} will", verb, place), f"{name} {past} in the {place}."


def _question(draw: random.Random) -> Exchange:
    name, place = draw.choice(_NAMES), draw.choice(_PLACES)
    wording = draw.choice(["Turn this into a question: {} is in the {}.", "Ask whether {} is in the {}."])
    return wording.format(name, place), f"Is {name} in the {place}?"


def _list(draw: random.Random) -> Exchange:
    kind = draw.choice(list(_LISTS))
    first, *others = draw.sample(_LISTS[kind], 3)
    wording = draw.choice(["Name three {}, beginning with {}.", "List three {}; start with {}."])
    return wording.format(kind, first), f"{first}, {others[0]} and {others[1]}.".capitalize()


_EXCHANGES: list[Callable[[random.Random], Exchange]] = [
    _capital, _country, _opposite, _sound, _greeting, _farewell, _polite, _past, _question, _list,
]  # fmt: skip


def conversations(seed: int) -> Iterator[Row]:
    """Conversations without end; prompts repeat now and then."""
    draw = random.Random(f"chat {seed}")
    while True:
        prompt, answer = draw.choice(_EXCHANGES)(draw)
        yield {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


WAYS = {
    "empty_answer": empty_answer,
    "stray_end_token": stray_end_token,
    "replacement_character": replacement_character,
    "placeholder": placeholder,
    "duplicate": duplicate,
}
