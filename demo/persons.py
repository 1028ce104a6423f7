"""Persons and their pictures, drawn by chance: what stays (hair, skin, beard), what changes, and the captions."""

import random
from dataclasses import dataclass

from palette import BACKGROUND, CLOTHES, HAIR, HAIR_WEIGHTS, SKIN, near
from styles import PortraitStyle

BEARDED = 0.3  # share of the persons whose style has beards
HATTED = 0.12
WITH_GLASSES = 0.35  # share of the pictures
EYES_SAID = 0.3  # share of the pictures whose eyes are closed or winking, where the style can draw it
TURN = 5.0  # largest rotation, degrees
SHIFT = 2.0  # largest move, per cent of the side
ZOOM = 0.04  # largest change of size
Options = dict[str, object]


@dataclass(frozen=True)
class Person:
    """What all pictures of one person share."""

    style: PortraitStyle
    words: tuple[str, ...]  # of the caption
    traits: tuple[str, ...]  # chosen variants and colour words: two persons with the same ones are the same person
    options: Options


@dataclass(frozen=True)
class Portrait:
    """One picture of a person, not yet drawn."""

    caption: str
    options: Options


def pick(table: dict[str, str], chance: random.Random) -> tuple[str, str]:
    """A word of the table and one of its variants."""
    word = chance.choice(sorted(table))
    return word, chance.choice(table[word].split() or [""])


def variant(component: str, name: str) -> Options:
    """Options that show this variant of a component, "-" for none, "a+b" for hair in front and behind."""
    if not name:
        return {}
    if name == "-":
        return {f"{component}Probability": 0}
    front, _, rear = name.partition("+")
    rear_options: Options = {"rearHairProbability": 100, "rearHairVariant": rear} if rear else {}
    return {f"{component}Variant": front, f"{component}Probability": 100} | rear_options


def draw_hair(style: PortraitStyle, chance: random.Random) -> tuple[str, tuple[str, ...], Options]:
    """Caption words, traits and options of the hair or of the hat."""
    weights = [HAIR_WEIGHTS.get(colour, 1) for colour in HAIR]
    colour = chance.choices(list(HAIR), weights)[0]
    if style.hats and chance.random() < HATTED:
        word, name = pick(style.hats, chance)
        hat = chance.choice(list(CLOTHES))
        under = {} if style.hat_component == style.hair_component else variant("hair", "short01")
        options = under | variant(style.hat_component, name) | {"hatColor": [near(CLOTHES[hat], chance)]}
        words = f"{hat} {word}"
    else:
        word, name = pick(style.hair, chance)
        options = variant(style.hair_component, name)
        if style.hair_is_black_but and name not in style.hair_is_black_but.split():
            colour = "black"
        words = word if word == "bald" else f"{colour} {word}"
        if style.hats and style.hat_component != style.hair_component:
            options |= variant(style.hat_component, "-")
    hexadecimal = near(HAIR[colour], chance)
    return words, (words, name, colour), options | {name: [hexadecimal] for name in style.hair_colours}


def draw_person(style: PortraitStyle, chance: random.Random) -> Person:
    hair_words, traits, options = draw_hair(style, chance)
    skin = chance.choice(list(SKIN))
    options |= {"rearHairProbability": 0} | options if style.definition == "toon-head" else {}
    options |= {style.skin_colour: [near(SKIN[skin], chance)]}
    words = [hair_words, skin]
    beard = "-"
    if style.beards:
        if chance.random() < BEARDED:
            word, beard = pick(style.beards, chance)
            words.append(word)
        options |= variant(style.beard_component, beard)
    traits += (skin, beard)
    for component, names in sorted(style.person.items()):
        name = chance.choice(names.split())
        traits += (name,)
        options |= variant(component, name)
    return Person(style, tuple(words), traits, style.fixed | options)


def draw_face(style: PortraitStyle, chance: random.Random) -> tuple[list[str], Options]:
    """Expression, eyes and glasses."""
    expression, name = pick(style.expressions, chance)
    words, options = [expression], variant(style.expression_component, name)
    if style.brows:
        options |= variant("eyebrows", chance.choice(style.brows.get(expression, style.brows[""]).split()))
    glasses = "-"
    if style.glasses and chance.random() < WITH_GLASSES:
        word, glasses = pick(style.glasses, chance)
        words.append(word)
    if style.eyes:
        said = {word: names for word, names in style.eyes.items() if word}
        special = said and glasses == "-" and chance.random() < EYES_SAID
        word, eyes = pick(said if special else {"": style.eyes[""]}, chance)
        words += [word] if word else []
        options |= variant("eyes", eyes)
    if style.glasses and not (style.glasses_component == "eyes" and glasses == "-"):
        options |= variant(style.glasses_component, glasses)
    return words, options


def draw_portrait(person: Person, chance: random.Random) -> Portrait:
    """A picture of the person: face, clothes, background and where the figure stands."""
    style = person.style
    words, options = draw_face(style, chance)
    if style.clothes:
        worn, name = pick(style.clothes, chance)
        colour = chance.choice(list(CLOTHES))
        options |= variant(style.clothes_component, name)
        options |= {style.clothes_colours[worn]: [near(CLOTHES[colour], chance)]}
        words.append(f"{colour} {worn}")
    background = chance.choice(list(BACKGROUND))
    words.append(f"{background} background")
    options |= {
        "backgroundColor": [near(BACKGROUND[background], chance)],
        "rotate": 0 if style.is_grid else round(chance.uniform(-TURN, TURN), 2) % 360,
        "scale": 1 if style.is_grid else round(style.zoom * chance.uniform(1 - ZOOM, 1 + ZOOM), 3),
        "translateX": round(chance.uniform(-SHIFT, SHIFT), 2),
        "translateY": round(style.drop + chance.uniform(-SHIFT, SHIFT), 2),
        "seed": str(chance.getrandbits(32)),  # for what no option of ours decides
    }
    caption = ", ".join([f"{style.name} portrait", *person.words, *words])
    return Portrait(caption, person.options | options)
