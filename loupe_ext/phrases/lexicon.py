"""The words that the rules know: English function words, and the adjectives and verbs that captions are full of."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set(
    "a an the this these those my your his her its our their some any no every each all both another either neither "
    "several many few various multiple other own what whose such most more enough only"
)
NUMBERS = _set(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million "
    "dozen first second third fourth fifth last next"
)
# Words that count what follows, as a number does.
QUANTITIES = (
    "a lot of",
    "lots of",
    "a couple of",
    "a pair of",
    "a number of",
    "a variety of",
    "plenty of",
    "dozens of",
    "hundreds of",
    "thousands of",
)
MEASURES = ("pair of", "pairs of")  # behind more than an article: "the larger pair of gloves"
# Prepositions of several words, and pairs of pronouns: no object stands there.
FIXED = (
    *(f"{at} the {side} of" for at in ("to", "on", "at", "from") for side in ("left", "right")),
    *(f"{at} the {place} of" for at in ("in", "at") for place in ("middle", "center", "centre", "front", "back")),
    "at the top of",
    "on the top of",
    "at the bottom of",
    "in front of",
    "on top of",
    "in back of",
    "at least",
    "as well as",
    "such as",
    "next to",
    "close to",
    "in between",
    "left of",
    "right of",
    "because of",
    "instead of",
    "in order to",
    "for sale",
    "each other",
    "one another",
)
PREPOSITIONS = _set(
    "about above across after against along alongside amid among amongst around as at atop before behind below "
    "beneath beside besides between beyond by despite down during except for from in inside into like near of off "
    "on onto out outside over past per since than through throughout to toward towards under underneath until up "
    "upon versus via vs while with within without because if when where whether how why although though so but that "
    "which"
)
PRONOUNS = _set(
    "i you he she it we they me him us them who whom himself herself itself themselves myself yourself ourselves "
    "there someone somebody something everyone everybody everything anyone anything nobody nothing mine yours hers "
    "ours theirs oneself"
)
AUXILIARIES = _set(
    "is are was were be been being am has have had having do does did doing isn't aren't wasn't weren't doesn't "
    "don't didn't it's there's he's she's that's they're get gets getting got seem seems appear appears become "
    "becomes"
)
MODALS = _set("can could will would shall should may might must can't cannot won't to")
ADVERBS = _set(
    "very too also just still not even almost together outdoors indoors upside away back here now then again "
    "already always never often soon once ever yet apart aside ahead forward backwards sideways downhill uphill "
    "quite rather nearby somewhere else up-close off-road overhead underwater abroad alone high"
)
ADJECTIVES = _set(
    "red orange yellow green blue purple pink brown black white gray grey beige tan teal turquoise maroon golden "
    "violet black-and-white colored coloured colorful dark bright pale plain big large small little tiny huge giant "
    "tall short long wide narrow thick thin fat skinny deep shallow low enormous massive miniature medium mini old "
    "new young modern ancient antique vintage elderly adult older younger larger smaller bigger taller early late "
    "hot cold warm cool wet dry fresh frozen raw ripe rotten sunny rainy snowy cloudy foggy stormy windy icy dusty "
    "muddy sandy grassy rocky hilly dirty messy clean neat empty full open close closed shut ready good bad nice "
    "great best better worst pretty cute beautiful lovely ugly handsome gorgeous adorable fancy cheap expensive "
    "happy sad angry funny silly crazy sleepy tired bored busy lazy friendly lonely hungry thirsty healthy sick "
    "injured round square flat straight curved circular rectangular oval triangular sharp pointy soft hard rough "
    "smooth shiny fuzzy furry fluffy hairy curly wavy spotted striped bald bare naked barefoot blonde blond bearded "
    "wooden metal metallic plastic woolen silver steel concrete leather wild tame domestic real fake true false "
    "blank same different similar single double whole entire main own left right upper lower middle top front rear "
    "inner outer distant far near various live alive dead asleep awake rural urban local public private royal "
    "social special common rare simple complex traditional typical classic quiet loud calm peaceful fast slow quick "
    "strong weak heavy light-brown light-blue dark-blue sweet sour salty spicy tasty delicious creamy crispy "
    "electric electronic digital male female human pregnant asian african american european chinese japanese french "
    "italian indian mexican aerial vertical horizontal grand rich poor wealthy famous professional casual formal "
    "unique perfect abstract seamless retro double-decker stainless"
)
# Ends that adjectives have, and nouns hardly ever.
ADJECTIVE_ENDS = ("ous", "ful", "less", "ish", "able", "ible", "ical", "esque")
NOT_ADJECTIVES = _set("dish fish table vegetable cable radish finish handful spoonful mouthful armful stable vertical")
NOT_ADVERBS = _set(
    "family butterfly dragonfly jelly belly fly lily ally bully rally assembly supply reply italy july anomaly"
)
# "-ed" and "-ing" that are no participles.
NOT_PARTICIPLES = _set(
    "moped red bed shed sled seed feed weed reed breed speed need steed tweed embed hundred kindred infrared building "
    "ceiling clothing painting wedding ring king string evening morning thing wing spring railing awning crossing "
    "siding sibling duckling pudding icing earring bring sing swing sling bling drawing lightning sting ping-pong "
    "dressing frosting stuffing topping stocking flooring bedding briefing meeting anything everything nothing "
    "something during seedling sterling viking darling fling cling"
)
# Participles that make compounds of what follows them: "a living room", "two cutting boards".
COMPOUNDING = _set(
    "living dining cutting parking swimming frying washing sewing shopping landing bathing fishing sailing hiking "
    "riding walking boxing sleeping skating skiing dressing waiting sitting playing reading wedding chopping baking "
    "serving cooking rolling training racing"
)
COMPOUNDED = _set(
    "room rooms table tables board boards lot lots garage meter meters space spaces pool pools pan pans machine "
    "machines mall bag bags strip gear boat boats rod rods pole poles trail stick ring gloves suit rink area field "
    "cart carts sheet dish dishes pin track trunks plane planes"
)
# Irregular participles, which may stand before a noun; and pasts, which may not.
PARTICIPLES = _set(
    "broken torn worn cut grown drawn driven written fallen hidden woven spun burnt built made shown seen taken "
    "given held laid known painted sunken swollen stolen bitten eaten thrown ridden frozen lit bound chosen done "
    "hung blown fried dried tied"
)
PASTS = _set(
    "sat stood ran ate rode took wore lay flew caught put hit went came gave saw threw drove drew wrote grew swam "
    "fell kept met lies lying held made hung did began drank sang blew let"
)
# Base forms of the verbs that captions use. Each is a verb only where a verb can stand; see `rules`.
VERBS = _set(
    "sit stand walk ride run jump play hold wear eat drink watch look carry throw catch swing hang lie lean rest "
    "sleep swim fly climb skate ski surf talk speak smile laugh cry sing dance pose wait work cook cut make take "
    "give use show reach pull push drive cross pass turn wave lay graze feed chase kick hit fight roam stare gaze "
    "gather celebrate perform attend arrive visit enjoy prepare serve sell buy read write draw paint fill cover "
    "surround face contain include say see go come move travel fall float glow shine grow bloom blow burn rise set "
    "leave enter exit live compete score react greet sniff lick bite peek peer crouch kneel squat point touch pet "
    "hug kiss help try learn teach sail row paddle glide slide race dive leap hover land perch huddle line overlook "
    "approach follow lead cuddle share shake open close stretch wander relax snuggle display park stop feature "
    "brush wash clean pick hand handle bring connect flow emerge depict represent cast sport begin start tow keep "
    "need want have let put get pour cheer stroll patrol juggle dig chew nibble sip munch bow clap applaud bark "
    "yawn wrap decorate hike jog toss bounce dribble browse inspect examine explore discuss chat interact salute "
    "sprint crawl sprinkle stir bake knit sew listen pray meditate"
)
# Of these, the forms with and without -s are nouns more often than not, also behind another noun.
NOUN_LIKE = _set(
    "line set display park land hand race feature face paint sport point row cast cut work cross stop show"
)
# Of the pasts, one that is a tool where no object follows: "a chain saw".
NOUN_LIKE_PASTS = _set("saw")
# What does not act, and what it makes compounds with, which looks like a verb: "ice skates".
INANIMATE = _set(
    "ice roller inline figure hockey fruit vegetable coffee lemonade flower tooth hair paint carnival amusement pony "
    "hay boat ski chair water porch rope tv night"
)
INANIMATE_HEADS = _set("skate skates stand stands brush brushes ride rides slide slides swing swings lift lifts")
NOUNS = _set("wave waves plant plants light lights dress drinks bat bats sailing surfing skiing")
PLURALS = _set("people men women children sheep cattle police kids deer fish oxen geese feet teeth mice")
# Nouns that dye the colour behind them: "a light blue shirt", "a lime green car".
TINTS = _set("light lime navy sky baby forest olive mint neon hot rose blood sea leafy")
COLOURS = _set("red orange yellow green blue purple pink brown black white gray grey gold")
