"""The drawing sets the demo models learn from, and the two sets they are only tested on.

Every training set has a permissive or an attribution licence.  `noto-v1` and `openmoji` are
never trained on: they are the unseen artists of the evaluation (openmoji is share-alike, so no
picture of it is shipped either).
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Set:
    pkg: str            # npm package, without "@iconify-json/"
    artist: str         # the name used in "by NAME"; "" = no artist phrase is ever learnt
    style: str          # flat | shaded | mono | line
    mono: bool = False  # drawn in one colour: the augmentation picks the colour


# Emoji sets with a named artist, in the order of artists.txt.
ARTISTS = [
    Set("noto", "Noto", "shaded"),
    Set("twemoji", "Twemoji", "flat"),
    Set("fluent-emoji-flat", "Fluent Flat", "flat"),
    Set("fluent-emoji", "Fluent", "shaded"),
    Set("fluent-emoji-high-contrast", "Fluent High Contrast", "mono", True),
    Set("fxemoji", "FxEmoji", "flat"),
    Set("emojione", "EmojiOne", "flat"),
    Set("emojione-monotone", "EmojiOne Monotone", "mono", True),
    Set("streamline-emojis", "Streamline", "line"),
]
# General icon sets, taken only where an icon carries the name of a concept: more shapes per
# concept, from many hands.  They have no artist phrase.
EXTRAS = [Set(p, "", "mono", True) for p in (
    "mdi ph tabler lucide game-icons icon-park-solid icon-park-outline fa6-solid "
    "material-symbols healthicons maki fluent bi ri solar iconoir hugeicons guidance mingcute "
    "bxs uil carbon").split()] + [Set(p, "", "flat") for p in (
    "icon-park streamline-ultimate-color streamline-freehand-color flat-color-icons "
    "fluent-color meteocons").split()]
TRAIN = ARTISTS + EXTRAS
HELD_OUT = [Set("noto-v1", "", "flat"), Set("openmoji", "", "line")]
