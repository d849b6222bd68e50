"""The list of concepts: visually distinct CLDR emoji names, cut down from about 1,900.

Dropped: flags, skin tones, gendered pairs (the neutral one stays), near-equal faces, arrows and
buttons, CJK buttons, zodiac signs and keycaps.  Merged into one concept: pictures that differ
only in the view of the same thing ("dog face" and "dog", "oncoming bus" and "bus").
"""
import json
import re
from dataclasses import dataclass, field

def split(text):
    return {x.strip() for x in re.split(r"[;|]\s*|\n", text.replace("\n", " ")) if x.strip()}


# Groups where only the listed names stay.
KEEP_SMILEYS = """grinning face; face with tears of joy; upside-down face; winking face;
smiling face with halo; smiling face with hearts; smiling face with heart-eyes; star-struck;
face blowing a kiss; face with tongue; money-mouth face; face with hand over mouth; shushing face;
thinking face; zipper-mouth face; face without mouth; neutral face; smirking face;
face with rolling eyes; grimacing face; drooling face; sleeping face; face with medical mask;
face with thermometer; face with head-bandage; nauseated face; face vomiting; hot face; cold face;
exploding head; cowboy hat face; partying face; smiling face with sunglasses; nerd face;
face with monocle; confused face; frowning face; astonished face; flushed face; pleading face;
crying face; loudly crying face; face screaming in fear; yawning face; face with steam from nose;
enraged face; face with symbols on mouth; smiling face with horns; skull; skull and crossbones;
pile of poo; clown face; ogre; goblin; ghost; alien; alien monster; robot; grinning cat;
cat with tears of joy; smiling cat with heart-eyes; crying cat; pouting cat; weary cat;
see-no-evil monkey; hear-no-evil monkey; speak-no-evil monkey; love letter; heart with arrow;
heart with ribbon; sparkling heart; two hearts; broken heart; red heart; yellow heart;
green heart; blue heart; purple heart; black heart; kiss mark; hundred points; anger symbol;
collision; dizzy; sweat droplets; dashing away; hole; speech balloon; thought balloon; ZZZ"""
KEEP_PEOPLE = """waving hand; hand with fingers splayed; raised hand; vulcan salute; OK hand;
pinching hand; victory hand; crossed fingers; love-you gesture; sign of the horns; call me hand;
backhand index pointing left; backhand index pointing right; backhand index pointing up;
backhand index pointing down; thumbs up; thumbs down; raised fist; clapping hands; raising hands;
open hands; handshake; folded hands; writing hand; nail polish; selfie; flexed biceps;
mechanical arm; mechanical leg; leg; foot; ear; nose; brain; tooth; bone; eyes; eye; tongue; mouth;
baby; old man; old woman; person: beard; person frowning; person gesturing NO; person gesturing OK;
person raising hand; person bowing; person facepalming; person shrugging; health worker; student;
judge; farmer; cook; mechanic; scientist; technologist; singer; artist; pilot; astronaut;
firefighter; police officer; detective; guard; construction worker; person with crown;
person wearing turban; person in tuxedo; person with veil; pregnant woman; baby angel;
Santa Claus; superhero; supervillain; mage; fairy; vampire; merperson; elf; genie; zombie;
person getting massage; person getting haircut; person walking; person running; ballet dancer;
people with bunny ears; person in steamy room; person climbing; person fencing; horse racing;
skier; snowboarder; person golfing; person surfing; person rowing boat; person swimming;
person lifting weights; person biking; person cartwheeling; person juggling;
person in lotus position; person taking bath; person in bed; couple with heart; speaking head;
bust in silhouette; busts in silhouette; footprints"""
KEEP_SYMBOLS = """ATM sign; litter in bin sign; wheelchair symbol; restroom; baby symbol;
water closet; passport control; baggage claim; warning; no entry; prohibited; no bicycles;
no smoking; no pedestrians; no mobile phones; no one under eighteen; radioactive; biohazard;
up arrow; right arrow; down arrow; left arrow; right arrow curving left;
counterclockwise arrows button; atom symbol; star of David; wheel of dharma; yin yang;
latin cross; star and crescent; peace symbol; menorah; shuffle tracks button;
repeat button; play button; fast-forward button; pause button; stop button; record button;
eject button; cinema; bright button; antenna bars; vibration mode; mobile phone off; female sign;
male sign; multiply; plus; minus; divide; infinity; double exclamation mark; red question mark;
red exclamation mark; currency exchange; heavy dollar sign; medical symbol; recycling symbol;
fleur-de-lis; trident emblem; name badge; Japanese symbol for beginner; check mark button;
check mark; cross mark; curly loop; part alternation mark; eight-spoked asterisk; copyright;
registered; trade mark; information; NEW button; OK button; P button; SOS button; VS button;
red circle; blue circle; black circle; white circle; large orange diamond; large blue diamond;
red triangle pointed up; radio button"""
# Groups where the listed names go.
DROP = """guide dog; service dog; black cat; ox; water buffalo; rat; ewe; pig nose; rosette;
black bird; goose; phoenix; wing; white flower; leafy green; green apple; lime; brown mushroom;
root vegetable; lime; stuffed flatbread; shallow pan of food; cut of meat; bowl with spoon;
tumbler glass; pouring liquid; cup with straw; clinking glasses; shortcake; globe with meridians;
map of Japan; rock; wood; houses; house with garden; Japanese post office; love hotel;
department store; wedding; cityscape at dusk; sunrise over mountains; bridge at night; foggy;
railway car; bullet train; light rail; train; tram; monorail; tram car; trolleybus; minibus;
sport utility vehicle; pickup truck; manual wheelchair; station; mountain railway;
passenger ship; motor boat; airplane departure; airplane arrival; small airplane;
hourglass not done; first quarter moon face; last quarter moon face; waxing crescent moon;
waxing gibbous moon; waning gibbous moon; waning crescent moon; first quarter moon;
last quarter moon; sun behind small cloud; sun behind large cloud; sun behind rain cloud; fog;
closed umbrella; umbrella; sparkle; tanabata tree; ticket; 2nd place medal; 3rd place medal;
sports medal; softball; spade suit; heart suit; diamond suit; club suit; rugby football;
speaker low volume; speaker medium volume; muted speaker; musical notes; control knobs;
mobile phone with arrow; telephone; trackball; optical disk; computer disk; camera with flash;
magnifying glass tilted right; green book; blue book; orange book; notebook; ledger; notebook with decorative cover;
page facing up; bookmark tabs; rolled-up newspaper; yen banknote; euro banknote; pound banknote;
coin; chart increasing with yen; e-mail; incoming envelope; envelope with arrow; outbox tray;
closed mailbox with lowered flag; open mailbox with raised flag; open mailbox with lowered flag;
closed mailbox with raised flag; tear-off calendar; spiral notepad; spiral calendar; card index dividers;
open file folder; card file box; card index; round pushpin; linked paperclips; pen; locked with pen;
locked with key; old key; hammer and pick; hammer and wrench; low battery; woman’s clothes;
clutch bag; flat shoe; woman’s sandal; lab coat; goggles; one-piece swimsuit; shorts; safety vest;
sari; kimono; briefs; martial arts uniform; military helmet; rescue worker’s helmet; long drum; placard;
identification card; bell with slash; Japanese dolls; moon viewing ceremony; pine decoration;
carp streamer; running shirt; goal net; convenience store; sunset; reminder ribbon; red envelope;
teacup without handle; sake; beverage box; mate; ice; flatbread; tamale; falafel; oden; empty nest;
national park; building construction; night with stars; landslide; suspension railway;
mountain cableway; desert; kaaba; hindu temple; synagogue; shinto shrine; railway track;
barber pole; oncoming fist; horizontal traffic light; construction; hot springs; pager; film frames;
page with curl; funeral urn; military medal; joker; flower playing cards;
nut and bolt; clamp; white cane; hook; oyster; chains; level slider"""
# A second pass over all groups: things that look much like another one on the list at 64 pixels.
ALIKE = """smiling face with hearts; face without mouth; smirking face; frowning face; flushed face;
yawning face; weary cat; pouting cat; grinning cat; drooling face; hot face; face with hand over mouth; alien monster;
heart with ribbon; collision; dashing away; hole; anger symbol; raised hand; open hands;
raising hands; pinching hand; writing hand; selfie; mechanical leg; leg; tongue; person frowning;
person gesturing NO; person facepalming; person raising hand; judge; scientist; technologist;
singer; mechanic; pilot; supervillain; elf; person with veil; person in tuxedo; genie; guard;
person getting massage; person in steamy room; person fencing; person rowing boat; person cartwheeling;
person juggling; bust in silhouette; leopard; poodle; boar; bison; mammoth; orangutan; beaver;
badger; hamster; cricket; cockroach; beetle; wilted flower; blossom; cherry blossom; lotus; herb;
fallen leaf; leaf fluttering in wind; melon; mango; nest with eggs; pear; kiwi fruit; olive; potato; beans;
chestnut; burrito; fondue; canned food; pot of food; rice cracker; curry rice; cooked rice; dango;
moon cake; fish cake with swirl; oden; takeout box; pie; custard; stadium; hut; brick; derelict house;
office building; bank; hotel; Japanese castle; sunrise; high-speed train; motor scooter; auto rickshaw;
speedboat; ferry; aerial tramway; seat; bellhop bell; mantelpiece clock; timer clock; glowing star;
cloud with rain; cloud with snow; wind face; dizzy; sparkler; firecracker; confetti ball; wind chime;
cricket game; lacrosse; flag in hole; diving mask; curling stone; pool 8 ball; piñata; mirror ball;
nesting dolls; mahjong red dragon; thread; yarn; coat; bikini; purse; shopping bags; thong sandal;
ballet shoes; hiking boot; prayer beads; loudspeaker; postal horn; studio microphone; fax machine;
videocassette; film projector; dvd; desktop computer; red paper lantern; diya lamp; label; credit card; receipt;
inbox tray; black nib; crayon; file cabinet; straight ruler; petri dish; drop of blood; elevator;
couch and lamp; plunger; lotion bottle; mouse trap; safety pin; roll of paper; bubbles; hamsa;
nazar amulet; passport control; water closet; baggage claim; no mobile phones; no one under eighteen;
repeat button; counterclockwise arrows button; fast-forward button; stop button; eject button; cinema; bright button;
vibration mode; mobile phone off; divide; currency exchange; trident emblem; name badge;
part alternation mark; eight-spoked asterisk; curly loop; registered; P button; VS button; VS button;
large orange diamond; radio button; litter in bin sign; baby symbol; heavy dollar sign; wheel of dharma;
male sign; female sign; knot; sewing needle; boomerang; rock; wood; link; crutch"""
# "a; b" = pictures of a are pictures of b.
MERGE = """dog face; dog|cat face; cat|cow face; cow|tiger face; tiger|horse face; horse|
pig face; pig|mouse face; mouse|rabbit face; rabbit|monkey face; monkey|dragon face; dragon|
spouting whale; whale|two-hump camel; camel|oncoming automobile; automobile|oncoming taxi; taxi|
oncoming bus; bus|oncoming police car; police car|front-facing baby chick; baby chick|
snowman without snow; snowman|green book; closed book|blue book; closed book|
orange book; closed book|hourglass not done; hourglass done|full moon face; full moon|
sun with face; sun|new moon face; new moon|umbrella; umbrella with rain drops|
bullet train; high-speed train|magnifying glass tilted right; magnifying glass tilted left|
globe showing Americas; globe showing Europe-Africa|oncoming fist; raised fist|
globe showing Asia-Australia; globe showing Europe-Africa|tear-off calendar; calendar|
open file folder; file folder|camera with flash; camera|musical notes; musical note|
house with garden; house|umbrella on ground; umbrella with rain drops|
rugby football; american football|linked paperclips; paperclip|sparkle; sparkles"""
# Shorter names where the CLDR one describes a variant that is no longer told apart.
RENAME = {"hourglass done": "hourglass", "globe showing Europe-Africa": "globe",
          "magnifying glass tilted left": "magnifying glass", "umbrella with rain drops": "umbrella",
          "face without mouth": "face without mouth", "person: beard": "bearded person",
          "man’s shoe": "shoe", "woman’s boot": "boot", "woman’s hat": "hat",
          "shuffle tracks button": "shuffle button", "backhand index pointing left": "hand pointing left",
          "backhand index pointing right": "hand pointing right", "backhand index pointing up": "hand pointing up",
          "backhand index pointing down": "hand pointing down"}
CLOCK = re.compile(r"(o’clock|-thirty)$")

# Names which take no article.
SINGULAR_S = set("""cactus bus walrus octopus compass abacus cross glass dress lotus hibiscus
trolleybus rhinoceros hippopotamus""".split())
BARE = split("""bread; popcorn; butter; salt; cooked rice; curry rice; spaghetti; bacon; garlic;
broccoli; sushi; badminton; tennis; lacrosse; bowling; ping pong; coral; fondue; soap; yarn; thread;
camping; cooking; infinity; money with wings; hundred points; fire; dna; Santa Claus; no entry;
cinema; sunrise; selfie; baggage claim; passport control; information; horse racing; ZZZ; star-struck;
warning; nail polish; dizzy; high voltage; luggage; meat on bone; baguette bread; canned food;
field hockey; ice hockey; mount fuji; locked; unlocked; flexed biceps; restroom; litter in bin sign""")



def caption(name, group):
    """The caption of a concept: "a croissant", "an apple", "chopsticks", "no smoking"."""
    last = re.split(r" (?:of|with|on|in|behind|showing|and) ", name)[0].split()[-1].lower()
    first = name.split()[0].lower()
    if (group == "symbols" and not re.search(r"(symbol|button|sign|mark|badge|circle|diamond|arrow|emblem|cross)$", name)) \
            or name in BARE or first in ("no", "hundred", "two", "many", "people") \
            or (last.endswith("s") and first != "person" and last not in SINGULAR_S and not last.endswith("ss")):
        return name
    if name in ("sun", "milky way", "Statue of Liberty", "Tokyo tower"):
        return "the " + name
    an = (first[0] in "aeiou" and not re.match(r"(uni|eu|one|ukulele)", first)) or first in ("hourglass", "x-ray", "atm", "sos")
    return ("an " if an else "a ") + name


@dataclass
class Concept:
    name: str
    caption: str
    group: str
    subgroup: str
    tags: list
    labels: list = field(default_factory=list)   # CLDR names whose pictures belong here


def slug(label):
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "").replace("'", "")
                  .replace("ñ", "n").replace("é", "e")).strip("-")


def load(root):
    """All concepts, from emojibase-data below `root`/node_modules."""
    base = f"{root}/node_modules/emojibase-data/en/"
    data = json.load(open(base + "data.json"))
    messages = json.load(open(base + "messages.json"))
    groups = {g["order"]: g["key"] for g in messages["groups"]}
    subgroups = {g["order"]: g["key"] for g in messages["subgroups"]}
    keep = {"smileys-emotion": split(KEEP_SMILEYS), "people-body": split(KEEP_PEOPLE),
            "symbols": split(KEEP_SYMBOLS)}
    drop = split(DROP) | split(ALIKE)
    merge = dict([y.strip() for y in x.split(";")] for x in MERGE.replace("\n", " ").split("|"))
    known = {e["label"] for e in data}
    for what in (*keep.values(), drop, set(merge)):
        assert what <= known, what - known
    out, later = {}, []
    for e in data:
        label, group = e["label"], groups.get(e.get("group"))
        if group in (None, "component", "flags"):
            continue
        if CLOCK.search(label):
            if "clock" not in out:
                out["clock"] = Concept("clock", "a clock", group, subgroups[e["subgroup"]], ["time", "hour"])
            out["clock"].labels.append(label)
        elif label in merge:
            later.append((merge[label], label))
        elif label not in drop and (label in keep[group] if group in keep else e["version"] < 13):
            name = RENAME.get(label, label)
            if group != "people-body" and re.match(r"(man|woman|men|women)\b", label):
                continue
            out[label] = Concept(name, caption(name, group), group, subgroups[e["subgroup"]],
                                 [t for t in e.get("tags", [])], [label])
    for target, label in later:
        if target in out:
            out[target].labels.append(label)
    # "man running" and "woman running" are more pictures of "person running".
    for c in out.values():
        if c.group == "people-body":
            stem = c.labels[0].removeprefix("person ")
            c.labels += [l for l in (f"man {stem}", f"woman {stem}") if l in known]
    return list(out.values())


if __name__ == "__main__":
    import collections
    import sys
    cs = load(sys.argv[1])
    print(len(cs), collections.Counter(c.group for c in cs))
    print("; ".join(c.caption for c in cs))
