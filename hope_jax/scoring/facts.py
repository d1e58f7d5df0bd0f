"""Words that needles are made of, and facts that are asked for in other words.

Keys are two words with a hyphen; the lists are our own, as are the sentences of PAIRS, whose
questions share no content word with their facts (the idea: NoLiMa, arXiv 2502.05167).
"""

import uuid

import numpy as np

ADJECTIVES = """
able amber ancient ashen bare bitter black blue bold brave brief bright broad brown busy calm clean
clear clever cold cool crisp cruel curly damp daring dark deep dense dim dry dull eager early easy
empty even faint fair false fast fierce final firm flat fond frail free fresh frosty full gentle
giant glad golden grand gray green grim happy hard harsh hasty heavy hollow honest huge humble icy
idle jolly keen kind late lazy lean light little lively lonely long loose loud loyal lucky mad meek
mellow merry mild misty modest naive narrow neat new nimble noble odd old pale patient plain polite
poor proud pure quaint quick quiet rapid rare raw ready red rich ripe rough round royal rude rusty
sad safe salty shallow sharp short shy silent silly simple slim slow small smooth soft solid sour
spare steep stern stiff still stout strange strict strong stubborn sturdy sudden sunny sweet swift
tall tame tender thick thin tidy tiny tired tough true upright urgent vague vain vast violet warm
wary weak weary wet white wide wild wise witty worn yellow young
""".split()
NOUNS = """
acorn anchor ankle apple apron arrow attic badge bakery balcony banana barrel basket bench berry
bishop blanket bottle branch bread brick bridge broom bucket button cabin camel candle canoe canvas
captain carpet castle cellar chain chair chapel cherry chimney circus clock cloud collar comet
copper corner cotton cradle crater cricket crown curtain daisy desk diamond dollar dolphin donkey
drawer drum eagle easel elbow engine falcon farmer feather fence ferry fiddle finger flag flute
forest fork fountain fox garden garlic gate goat goose guitar hammer harbor harvest helmet heron
hill hinge honey hotel island jacket jar jungle kettle key kitchen kite ladder lantern lemon letter
lizard locket magnet map marble market meadow mirror monkey mountain muffin needle nest notebook oak
ocean olive onion orchard otter oven owl paddle palace panda paper parrot peach pearl pebble pencil
pepper piano pigeon pillow planet plum pocket pond prince pumpkin puzzle quilt rabbit raven ribbon
river rocket roof rope saddle sailor salmon school scissors shadow shelf shell shovel sparrow spoon
squirrel statue stove stream sugar table teapot temple thimble thunder tiger tower trumpet tulip
tunnel turtle umbrella valley velvet village violin wagon walnut whale wheel whistle willow window
winter wizard wolf zebra
""".split()
SYLLABLES = [f"{consonant}{vowel}" for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
NAMES = """
Abena Anton Beatriz Bjorn Chiara Dmitri Elif Farid Greta Hiroshi Ingrid Jamal Katya Leandro Mei
Nadia Olga Pablo Quentin Rosa Samir Tomas Ursula Viktor Wanda Xavier Yusuf Zoe
""".split()
PAIRS = (  # (the fact, the question): what links them is known, not said
    ("{name} grew up within sight of the Eiffel Tower.", "Who knows Paris well"),
    ("{name} spends every summer beside the pyramids of Giza.", "Who often visits Egypt"),
    ("{name} has not eaten meat or fish for years.", "Who is a vegetarian"),
    ("{name} cannot hear anything at all.", "Who is deaf"),
    ("{name} fills teeth and pulls them, six days a week.", "Who works as a dentist"),
    ("{name} coughs and sneezes whenever a cat is near.", "Who has an allergy to felines"),
    ("{name} bakes loaves before dawn and sells them at seven.", "Who makes bread"),
    ("{name} came down with a high fever last night.", "Who is ill"),
    ("{name} was made a widow by the war.", "Whose husband is dead"),
    ("{name} flies a jumbo jet across the Atlantic.", "Who works as an airline pilot"),
    ("{name} has climbed Mount Everest twice.", "Who went to Nepal"),
    ("{name} plays chess better than anyone alive.", "Who is the world champion of a board game"),
)


def word_key(rng: np.random.Generator) -> str:
  """Such as bold-teapot."""
  return f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]}-{NOUNS[rng.integers(len(NOUNS))]}"


def number(rng: np.random.Generator, digits: int = 7) -> str:
  return str(rng.integers(10 ** (digits - 1), 10 ** digits))


def uuid4(rng: np.random.Generator) -> str:
  return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def capitals(rng: np.random.Generator) -> str:
  """Five letters, the name of a variable."""
  return "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 5))


def made_up(rng: np.random.Generator) -> str:
  """A word of three syllables that no language has."""
  return "".join(SYLLABLES[i] for i in rng.integers(len(SYLLABLES), size=3))


DRAW = {"words": word_key, "numbers": number, "uuids": uuid4, "names": lambda rng: str(
    rng.choice(NAMES))}


def different(rng: np.random.Generator, draw, count: int, taken=()) -> list[str]:
  """So many, none twice and none of `taken`."""
  found, seen = [], set(taken)
  while len(found) < count:
    one = draw(rng)
    if one not in seen:
      seen.add(one)
      found.append(one)
  return found
