"""The colours, each with the word that the captions use, and small departures from them."""

import random

SKIN = {"light skin": "f6d3b3", "tan skin": "dda678", "brown skin": "a86e42", "dark skin": "6b4129"}
HAIR = {
    "black": "1f1a1c",
    "brown": "6b4226",
    "blond": "e3bf6e",
    "red": "b5432a",
    "grey": "a3a6ac",
    "white": "efeeea",
    "blue": "3f78c9",
    "pink": "e27aa8",
    "green": "4c9a5a",
    "purple": "7a55b0",
}
HAIR_WEIGHTS = {"black": 4, "brown": 4, "blond": 3, "red": 2}  # how often, against 1 for every other colour
CLOTHES = {
    "red": "d23f3f",
    "orange": "ec8433",
    "yellow": "f2cb45",
    "green": "4fa35c",
    "teal": "2f9e9a",
    "blue": "3f74cc",
    "purple": "8557bd",
    "pink": "ec86b0",
    "white": "f3f3f3",
    "grey": "92959c",
    "black": "2a2a2e",
}
BACKGROUND = {
    "white": "fafafa",
    "grey": "c6c9cf",
    "yellow": "f8e79a",
    "orange": "f9c48c",
    "red": "ee8b86",
    "pink": "f6c0d6",
    "purple": "ccb8ee",
    "blue": "a6cbf0",
    "teal": "98dad3",
    "green": "b0dda9",
}
DEPARTURE = 7  # of each channel, out of 255


def near(colour: str, chance: random.Random) -> str:
    """The colour with each channel moved by up to DEPARTURE."""
    channels = [int(colour[start : start + 2], 16) for start in (0, 2, 4)]
    moved = [min(255, max(0, channel + chance.randint(-DEPARTURE, DEPARTURE))) for channel in channels]
    return "".join(f"{channel:02x}" for channel in moved)
