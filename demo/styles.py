"""The seven ways of drawing a portrait: which options of each style show what a word of the captions says."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PortraitStyle:
    """One style. Tables lead from a word of the captions to the variants that show it, separated by spaces."""

    name: str  # as the captions call it
    definition: str  # name of the file in the package of styles
    hair: dict[str, str]
    expressions: dict[str, str]
    clothes: dict[str, str] = field(default_factory=dict)
    beards: dict[str, str] = field(default_factory=dict)
    glasses: dict[str, str] = field(default_factory=dict)
    eyes: dict[str, str] = field(default_factory=dict)  # the word "" says nothing
    hats: dict[str, str] = field(default_factory=dict)  # worn instead of hair, in a colour of their own
    brows: dict[str, str] = field(default_factory=dict)  # expression -> eyebrows; the word "" for all others
    person: dict[str, str] = field(default_factory=dict)  # further components that belong to a person, "-" for none
    hair_component: str = "hair"
    expression_component: str = "mouth"
    clothes_component: str = "clothes"
    beard_component: str = "beard"
    glasses_component: str = "glasses"
    hat_component: str = "hat"
    hair_colours: tuple[str, ...] = ("hairColor",)
    hair_is_black_but: str = ""  # variants that take the hair's colour, where not all do
    skin_colour: str = "skinColor"
    clothes_colours: dict[str, str] = field(default_factory=dict)  # word of the clothes -> colour option
    fixed: dict[str, object] = field(default_factory=dict)  # options that never change
    is_grid: bool = False  # drawn on a coarse grid, which turning and zooming would break
    zoom: float = 1.0
    drop: float = 0.0  # how far the picture is moved down, per cent of its side


OPEN_PEEPS = PortraitStyle(
    name="open peeps",
    definition="open-peeps",
    hair_component="head",
    hair={
        "afro": "afro",
        "bald": "noHair1",
        "receding hair": "noHair3",
        "bob": "bangs bangs2 medium1",
        "bun": "grayBun",
        "braids": "cornrows2",
        "curly hair": "dreads2",
        "flat top": "flatTop flatTopLong",
        "long hair": "mediumStraight",
        "long wavy hair": "long longBangs",
        "medium hair": "grayMedium medium2 medium3 mediumBangs",
        "mohawk": "mohawk",
        "ponytail": "bun2 mediumBangs2",
        "short hair": "grayShort short1 short2 short5",
        "side swept hair": "pomp short4",
    },
    hair_is_black_but="bangs grayBun grayMedium grayShort mediumBangs2 mohawk noHair3 short4",
    hair_colours=("headContrastColor",),
    expression_component="expression",
    expressions={
        "smiling": "smile",
        "smiling, eyes closed": "calm cute",
        "laughing": "smileBig smileTeethGap",
        "sad": "solemn",
        "angry": "veryAngry angryWithFang",
        "serious": "serious driven",
    },
    beard_component="facialHair",
    beards={
        "full beard": "full full2 full3",
        "goatee": "goatee1 goatee2",
        "moustache": "moustache2 moustache5 moustache6 moustache7",
    },
    glasses_component="accessories",
    glasses={
        "round glasses": "glasses glasses2 glasses5",
        "square glasses": "glasses3",
        "sunglasses": "sunglasses sunglasses2",
    },
    clothes={"shirt": ""},
    clothes_colours={"shirt": "clothingColor"},
    fixed={"maskProbability": 0},
)

LORELEI = PortraitStyle(
    name="lorelei",
    definition="lorelei",
    hair={
        "bald": "variant34",
        "receding hair": "variant25",
        "bob": "variant19 variant23",
        "bowl cut": "variant43",
        "bun": "variant36 variant38 variant46",
        "two buns": "variant26",
        "curly hair": "variant05 variant22",
        "flat top": "variant39",
        "long hair": "variant21 variant40 variant41",
        "long wavy hair": "variant35",
        "medium hair": "variant13 variant15 variant16 variant17",
        "mohawk": "variant27",
        "ponytail": "variant31 variant33",
        "short hair": "variant01 variant02 variant03 variant47",
        "side swept hair": "variant07 variant08 variant12",
        "spiky hair": "variant04 variant20",
    },
    expressions={
        "smiling": "happy01 happy02 happy15",
        "laughing": "happy05 happy12 happy16",
        "sad": "sad04",
        "angry": "sad04 sad06",
        "serious": "sad05",
        "surprised": "sad01 happy18",
    },
    brows={"": "variant01 variant02 variant05 variant07", "angry": "variant13"},
    eyes={"": "variant02 variant04 variant07 variant10 variant14 variant21 variant23", "eyes closed": "variant19"},
    beards={"full beard": "variant01 variant02"},
    glasses={
        "round glasses": "variant01",
        "square glasses": "variant03 variant04 variant05",
        "sunglasses": "variant02",
    },
    person={
        "nose": "variant01 variant02 variant03 variant04 variant05 variant06",
        "head": "variant01 variant02 variant03 variant04",
    },
    fixed={"earringsProbability": 0, "frecklesProbability": 0, "hairAccessoriesProbability": 0},
)

PIXEL_ART = PortraitStyle(
    name="pixel art",
    definition="pixel-art",
    hair={
        "receding hair": "short07 short18",
        "bob": "long04 long16 long17 long20",
        "bowl cut": "short06 short14",
        "braids": "long18",
        "two buns": "long14",
        "curly hair": "short11",
        "flat top": "short16",
        "long hair": "long07 long08 long09 long12 long13",
        "medium hair": "long02 long03 long21",
        "mohawk": "short05 short21",
        "short hair": "short01 short02 short03 short04 short15 short17 short22",
        "side swept hair": "short09 short10",
        "spiky hair": "short13",
    },
    hats={"cap": "variant02 variant07 variant08", "beanie": "variant01 variant03 variant04 variant09"},
    expressions={
        "smiling": "happy07 happy08 happy09 happy11",
        "laughing": "happy12 happy13",
        "sad": "sad01",
        "serious": "sad05 sad06",
        "surprised": "happy01",
    },
    eyes={"": "variant01 variant02 variant03 variant04 variant05 variant06 variant08 variant09"},
    glasses={"square glasses": "light01 light02 light05 light06", "sunglasses": "dark05 dark06"},
    clothes={
        "shirt": "variant01 variant03 variant04 variant05 variant08 variant11 variant12 variant16 variant23",
        "striped shirt": "variant13",
        "checkered shirt": "variant06",
    },
    clothes_colours={name: "clothingColor" for name in ("shirt", "striped shirt", "checkered shirt")},
    fixed={
        "accessoriesProbability": 0,
        "beardProbability": 0,
        "glassesColor": ["191919"],
        "mouthColor": ["c8323c"],
        "eyesColor": ["5b7c8b"],
    },
    is_grid=True,
)

PERSONAS = PortraitStyle(
    name="personas",
    definition="personas",
    hair={
        "afro": "curly",
        "bald": "bald",
        "receding hair": "balding",
        "bob": "bobBangs bobCut",
        "bun": "straightBun curlyBun bunUndercut",
        "flat top": "curlyHighTop",
        "long hair": "extraLong long",
        "pigtails": "pigtails",
        "short hair": "fade",
        "side swept hair": "shortCombover",
    },
    hair_colours=("hairColor", "facialHairColor"),
    expressions={
        "smiling": "smile smirk",
        "laughing": "bigSmile",
        "sad": "frown",
        "surprised": "surprise",
    },
    eyes={"": "open", "eyes closed": "happy sleep", "winking": "wink"},
    beard_component="facialHair",
    beards={
        "full beard": "beardMustache",
        "goatee": "goatee",
        "moustache": "pyramid walrus",
        "stubble": "shadow",
    },
    glasses_component="eyes",
    glasses={"square glasses": "glasses", "sunglasses": "sunglasses"},
    clothes={"shirt": "rounded squared", "checkered shirt": "checkered", "jacket": "small"},
    clothes_colours={name: "clothingColor" for name in ("shirt", "checkered shirt", "jacket")},
    person={"nose": "mediumRound smallRound"},
)

MICAH = PortraitStyle(
    name="micah",
    definition="micah",
    hair={
        "bald": "mrClean",
        "bob": "pixie",
        "bowl cut": "dannyPhantom",
        "long wavy hair": "full",
        "mohawk": "mrT",
        "side swept hair": "fonze",
    },
    hair_colours=("hairColor", "facialHairColor"),
    skin_colour="baseColor",
    expressions={
        "smiling": "smile smirk",
        "laughing": "laughing",
        "sad": "frown sad",
        "surprised": "surprised",
    },
    eyes={"": "eyes round", "eyes closed": "smiling"},
    beard_component="facialHair",
    beards={"full beard": "beard", "stubble": "scruff"},
    glasses={"round glasses": "round", "square glasses": "square"},
    clothes={"shirt": "collared crew", "jacket": "open"},
    clothes_colours={"shirt": "shirtColor", "jacket": "shirtColor"},
    person={"nose": "curve pointed tound", "ears": "attached detached", "eyebrows": "down up"},
    fixed={"earringsProbability": 0, "glassesColor": ["101010"], "mouthColor": ["000000"], "eyebrowsColor": ["000000"]},
)

TOON_HEAD = PortraitStyle(
    name="toon head",
    definition="toon-head",
    hair={
        "bun": "bun",
        "short hair": "undercut",
        "side swept hair": "sideComed",
        "spiky hair": "spiky",
        "long hair": "sideComed+longStraight undercut+longStraight",
        "long wavy hair": "sideComed+longWavy",
        "medium hair": "sideComed+neckHigh sideComed+shoulderHigh",
    },
    expressions={"smiling": "smile", "laughing": "laugh", "sad": "sad", "angry": "angry", "surprised": "agape"},
    brows={"": "neutral happy", "angry": "angry", "sad": "sad"},
    eyes={"": "happy wide", "eyes closed": "bow humble", "winking": "wink"},
    beards={"full beard": "fullBeard longBeard", "goatee": "chin chinMoustache", "moustache": "moustacheTwirl"},
    clothes={"shirt": "tShirt turtleNeck shirt", "dress": "dress", "jacket": "openJacket"},
    clothes_colours={name: "clothesColor" for name in ("shirt", "dress", "jacket")},
)

VOXEL_FOLK = PortraitStyle(
    name="voxel folk",
    definition="voxel-art",
    hair_component="top",
    hair={
        "afro": "afro",
        "bald": "-",
        "bob": "bob",
        "bowl cut": "bowl",
        "braids": "braids",
        "bun": "ponytail",
        "two buns": "buns",
        "curly hair": "curly",
        "long hair": "longStraight partedLong",
        "long wavy hair": "longWavy",
        "medium hair": "shoulderLength",
        "mohawk": "mohawk",
        "pigtails": "twinTails",
        "short hair": "short",
        "side swept hair": "sideSwept halfShaved",
        "spiky hair": "spiky",
    },
    hat_component="top",
    hats={"cap": "cap", "beanie": "beanie"},
    expressions={
        "smiling": "smile wideSmile smirk",
        "laughing": "laugh bigSmile grin",
        "sad": "frown",
        "serious": "flat",
        "surprised": "ooh",
    },
    brows={"": "flat raised soft"},
    eyes={"": "open soft side wide", "eyes closed": "happy closed"},
    beards={"full beard": "full", "goatee": "goatee", "moustache": "mustache", "stubble": "stubble"},
    glasses={"round glasses": "round", "square glasses": "square", "sunglasses": "shades"},
    clothes_component="outfit",
    clothes={"shirt": "plain hoodie overalls tie", "striped shirt": "stripes", "jacket": "jacket coat suit"},
    clothes_colours={"shirt": "shirtColor", "striped shirt": "shirtColor", "jacket": "jacketColor"},
    person={"nose": "block wide small tall", "cheeks": "- blush freckles"},
    fixed={"animationVariant": "none"},
    zoom=1.3,
    drop=8.0,
)

BASE_STYLES = (OPEN_PEEPS, LORELEI, PIXEL_ART, PERSONAS, MICAH, TOON_HEAD)
HOUSE_STYLE = VOXEL_FOLK
