"""Families by name: which emoji show the same thing, so that they stay on one side of every split."""

import re

# Each line is one family; a trailing * stands for any ending, a leading * for any beginning.
SAME_THING = """
monkey face, monkey, *no evil monkey
dog, dog face, guide dog, service dog
cat, cat face, black cat, grinning cat*, cat with*, smiling cat*, kissing cat, weary cat, crying cat, pouting cat
tiger, tiger face, leopard
horse, horse face, unicorn, carousel horse, horse racing
cow, cow face, ox, water buffalo
pig, pig face, pig nose, boar
ram, ewe, goat
camel, two hump camel
elephant, mammoth
mouse, mouse face, rat
rabbit, rabbit face
chipmunk, beaver
bear, polar bear, panda, teddy bear
hatching chick, baby chick, front facing baby chick
bird, black bird, dove
duck, swan, goose
dragon, dragon face
whale, spouting whale
fish, tropical fish, blowfish
beetle, lady beetle, cockroach
spider, spider web
cherry blossom, white flower, blossom, hibiscus
rose, wilted flower
seedling, herb
shamrock, four leaf clover
evergreen tree, deciduous tree, christmas tree
maple leaf, fallen leaf, leaf fluttering in wind
empty nest, nest with eggs
red apple, green apple
hot pepper, bell pepper
bread, croissant, baguette bread
flatbread, stuffed flatbread
taco, burrito
meat on bone, poultry leg
pot of food, shallow pan of food, cooking
bowl with spoon, green salad, steaming bowl, cooked rice, curry rice
rice ball, rice cracker
shrimp, fried shrimp
ice cream, soft ice cream, shaved ice
birthday cake, shortcake, cupcake
glass of milk, tumbler glass
cup with straw, bubble tea
hot beverage, teacup without handle
wine glass, cocktail glass
beer mug, clinking beer mugs, clinking glasses
fork and knife, fork and knife with plate
amphora, funeral urn
globe*
mountain, snow capped mountain, volcano, mount fuji
camping, tent
desert island, beach with umbrella, desert, national park
house, houses, derelict house, house with garden
office building, japanese post office, post office, hospital, bank, hotel, love hotel, convenience store, school,\
 department store
castle, japanese castle
church, wedding
night with stars, cityscape, cityscape at dusk, sunset, sunrise, sunrise over mountains, bridge at night, foggy
fireworks, sparkler
*train, metro, light rail, station, tram, tram car, railway car, monorail, mountain railway, suspension railway
mountain cableway, aerial tramway
bus, oncoming bus, trolleybus, minibus
ambulance, fire engine
police car, oncoming police car, taxi, oncoming taxi, automobile, oncoming automobile, sport utility vehicle
delivery truck, articulated lorry, pickup truck
motorcycle, motor scooter
manual wheelchair, motorized wheelchair
horizontal traffic light, vertical traffic light
speedboat, motor boat
passenger ship, ferry, ship
airplane, small airplane, airplane departure, airplane arrival
bell, bell with slash
hourglass done, hourglass not done
*oclock, *thirty
alarm clock, stopwatch, timer clock, mantelpiece clock
*moon, *moon face, sun with face, sun
star, glowing star, shooting star
cloud, cloud with*, sun behind*, fog
closed umbrella, umbrella, umbrella with rain drops, umbrella on ground
snowman, snowman without snow
droplet, drop of blood, sweat droplets
admission tickets, ticket
*medal
field hockey, lacrosse, ice hockey
baseball, softball
american football, rugby football
* suit, heart with*, heart decoration, *heart
ping pong, badminton
nesting dolls, japanese dolls
framed picture, *picture*
thread, yarn
glasses, sunglasses
lab coat, coat
t shirt, running shirt
dress, sari
shorts, briefs
purse, handbag, clutch bag
mans shoe, running shoe, hiking boot
womans sandal, high heeled shoe, thong sandal
military helmet, rescue workers helmet
ring, gem stone
* speaker, speaker *
loudspeaker, megaphone
musical note, musical notes
studio microphone, microphone
banjo, guitar, violin
drum, long drum
mobile phone, mobile phone with arrow
telephone, telephone receiver
battery, low battery
laptop, desktop computer
fax machine, printer
computer disk, floppy disk
optical disk, dvd
movie camera, film projector
camera, camera with flash, video camera
magnifying glass*
*book, books, notebook*, ledger
page with curl, page facing up, scroll, bookmark tabs, receipt, memo
newspaper, rolled up newspaper
*banknote, money with wings
credit card, identification card
envelope, e mail, incoming envelope, envelope with arrow, red envelope, love letter
outbox tray, inbox tray
*mailbox*
black nib, fountain pen, pen
file folder, open file folder, card index dividers
calendar, tear off calendar, spiral notepad, spiral calendar
chart increasing, chart decreasing, bar chart, chart increasing with yen
pushpin, round pushpin
paperclip, linked paperclips
card file box, card index
locked, unlocked, locked with pen, locked with key
key, old key
hammer, hammer and pick, hammer and wrench, pick
dagger, crossed swords
nut and bolt, gear
link, chains
bed, couch and lamp, person in bed
shower, bathtub
headstone, coffin
postbox, ballot box with ballot
bus stop, placard
paw prints, footprints
flag in hole, triangular flag
bicycle, person biking
canoe, person rowing boat
tulip, bouquet
"""


def matches(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None


def named_families(names: list[str]) -> list[list[int]]:
    """Positions in ``names`` of the members of each line of SAME_THING.

    Raises:
        ValueError: a pattern names nothing, which would be a slip of the pen.
    """
    families = []
    for line in SAME_THING.strip().replace("\\\n", "").splitlines():
        members = []
        for pattern in line.split(","):
            found = [i for i, name in enumerate(names) if matches(pattern.strip(), name)]
            if not found:
                raise ValueError(f"demo/names.py: {pattern.strip()!r} is the name of no emoji")
            members += found
        families.append(members)
    return families
