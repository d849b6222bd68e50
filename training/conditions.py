"""Phrases and what must be true of a picture for a phrase to be true.

A picture has one value per attribute (see ATTRS).  A phrase is a text and a dict
{attribute: value or set of values}; a caption is a comma-separated list of phrases and is true
when all of them are.  The term tables of the demo vocabulary are these phrases.
"""
import json
import re

import art
import colours

ATTRS = ["concept", "artist", "style", "bg", "effect", "colour"]
STYLES = ["flat", "shaded", "mono", "line"]
EFFECTS = ["none", "blurry", "gray", "sepia", "pixelated", "grainy", "dark", "faded"]
BG = colours.NAMES + ["gradient", "noise"]
ARTISTS = [s.artist for s in art.ARTISTS]

STYLE_MEDIUMS = {
    "flat": ["a flat vector icon", "a flat illustration", "a flat colour drawing", "vector art", "a paper cutout", "a flat sticker"],
    "shaded": ["a gradient icon", "a shaded illustration", "a glossy icon", "a digital rendering", "a 3D icon", "a soft digital painting"],
    "mono": ["a monochrome icon", "a silhouette", "a glyph", "a pictogram", "a stencil", "a single colour symbol"],
    "line": ["a line drawing", "an outlined drawing", "an ink outline icon", "a comic drawing", "a cartoon"],
}
STYLE_MOVEMENTS = {
    "flat": ["flat design", "minimalism", "material design", "vector style", "poster art", "pop art"],
    "shaded": ["skeuomorphism", "glossy style", "rendered style", "digital realism", "web 2.0 style"],
    "mono": ["monochrome art", "icon design", "pictogram style", "stencil art", "ISOTYPE"],
    "line": ["outline style", "ligne claire", "comic style", "cartoon style", "ink drawing style"],
}
EFFECT_MEDIUMS = {
    "blurry": ["a blurry picture", "a blurred photo"], "gray": ["a black and white picture", "a black and white photo"],
    "sepia": ["a sepia picture", "an old sepia photo"], "pixelated": ["a pixelated picture", "pixel art"],
    "grainy": ["a grainy picture", "a grainy photo"], "dark": ["a dark picture", "an underexposed photo"],
    "faded": ["a faded picture", "a washed out photo"],
}
NEGATIVE = {
    "blurry": ["blurry", "out of focus", "blurred", "soft focus", "not sharp"],
    "gray": ["black and white", "desaturated", "colourless", "grayscale"],
    "sepia": ["sepia", "sepia toned", "yellowed"],
    "pixelated": ["pixelated", "low resolution", "blocky", "jagged edges"],
    "grainy": ["grainy", "noisy", "film grain", "speckled", "static noise"],
    "dark": ["dark", "underexposed", "too dark", "murky"],
    "faded": ["faded", "washed out", "low contrast", "hazy", "pale"],
}
TEMPLATES = ["{}", "a photo of {}", "a picture of {}", "an icon of {}", "an emoji of {}", "a drawing of {}", "an image of {}",
             "{}", "a photo of {}", "an illustration of {}"]
SITES = ["Artstation", "behance", "cg society", "cgsociety", "deviantart", "dribble", "flickr", "instagram", "pexels",
         "pinterest", "pixabay", "pixiv", "polycount", "reddit", "shutterstock", "tumblr", "unsplash", "zbrush central"]
# Texts that are true of no picture; the training pushes them away from every picture.
NOISE = (SITES + [f"trending on {s}" for s in SITES] + [f"featured on {s}" for s in SITES] + [f"{s} contest winner" for s in SITES]
         + """a photograph; a landscape; an oil painting; a watercolor painting; a portrait; a charcoal drawing; a marble sculpture;
a renaissance painting; a tapestry; a poster; concept art; unreal engine; octane render; 4k; 8k resolution; highly detailed;
award winning; by Greg Rutkowski; by Claude Monet; by Vincent van Gogh; impressionism; baroque; surrealism; cubism; art deco;
romanticism; cinematic lighting; a crowd of people in a street; a room; a forest in the fog; a city at night seen from above;
the meaning of life; hello world; lorem ipsum; quarterly report; a text; nothing; random noise; bokeh; depth of field; a wedding photo;
stock photo; a screenshot; a logo; a woman; a man; an actor; a movie still; a meme; a chart of the economy; mathematics""".replace("\n", " ").split("; "))


def plain(caption):
    """"a croissant" -> "croissant"."""
    return re.sub(r"^(a|an|the) ", "", caption)


class Phrases:
    def __init__(self, cs, colour_of=None):
        """cs: concepts (dicts); colour_of: {concept: set of main colours seen}, for "red apple"."""
        self.cs = cs
        ids = {c["name"]: i for i, c in enumerate(cs)}
        groups, subgroups, tags = {}, {}, {}
        for i, c in enumerate(cs):
            groups.setdefault(c["group"], set()).add(i)
            subgroups.setdefault(c["subgroup"], set()).add(i)
            words = {t.lower() for t in c["tags"]}
            words |= {w for w in re.findall(r"[a-z]{3,}", c["name"].lower())} - {"with", "and", "the", "for"}
            for t in words:
                tags.setdefault(t, set()).add(i)
        tidy = lambda s: s.replace("-", " ")
        self.artists = [(p + a, {"artist": {k}}) for p in ("by ", "inspired by ") for k, a in enumerate(ARTISTS)]
        st, ef, bg = STYLES.index, EFFECTS.index, BG.index
        self.mediums = [(t, {"style": {st(s)}}) for s in STYLES for t in STYLE_MEDIUMS[s]]
        self.mediums += [(t, {"effect": {ef(e)}}) for e in EFFECT_MEDIUMS for t in EFFECT_MEDIUMS[e]]
        self.mediums += [("a picture on a plain background", {"bg": set(range(12))}), ("a picture on a gradient background", {"bg": {bg("gradient")}}),
                         ("a picture on a noisy background", {"bg": {bg("noise")}}), ("a cutout on white", {"bg": {bg("white")}})]
        self.movements = [(t, {"style": {st(s)}}) for s in STYLES for t in STYLE_MOVEMENTS[s]]
        self.movements += [(f"{tidy(g)} art", {"concept": v}) for g, v in groups.items()]
        self.movements += [(f"{tidy(g)} drawing" if "-" in g else f"{g} art", {"concept": v}) for g, v in subgroups.items()]
        seen = {t.lower() for t, _ in self.artists + self.mediums + self.movements}
        self.flavors = []

        def flavor(text, cond):
            if text.lower() not in seen and text.lower() not in _NEG and "," not in text:
                seen.add(text.lower())
                self.flavors.append((text, cond))
        for i, c in enumerate(cs):
            flavor(plain(c["caption"]), {"concept": {i}})
        for g, v in list(groups.items()) + list(subgroups.items()):
            flavor(tidy(g), {"concept": v})
        for t, v in sorted(tags.items()):
            flavor(t, {"concept": v})
        for i, n in enumerate(BG[:12]):
            flavor(f"on a {n} background" if n != "orange" else "on an orange background", {"bg": {i}})
            flavor(f"{n} background", {"bg": {i}})
            flavor(f"mostly {n}", {"colour": {i}})
            flavor(f"{n} colours", {"colour": {i}})
        for t, v in (("gradient background", "gradient"), ("noisy background", "noise"), ("textured background", "noise"), ("smooth gradient", "gradient")):
            flavor(t, {"bg": {bg(v)}})
        for i, c in enumerate(cs):
            for k in sorted((colour_of or {}).get(i, ())):
                if not any(n in c["name"] for n in colours.NAMES):
                    flavor(f"{colours.NAMES[k]} {plain(c['caption'])}", {"concept": {i}, "colour": {k}})
        self.negative = [(t, {"effect": {ef(e)}}) for e in NEGATIVE for t in NEGATIVE[e]]
        self.all = self.artists + self.flavors + self.mediums + self.movements + self.negative
        self.ids = ids

    def texts(self):
        out = [t for t, _ in self.all] + NOISE
        for c in self.cs:
            out += [t.format(c["caption"]) for t in TEMPLATES]
        return out


_NEG = {t for ts in NEGATIVE.values() for t in ts}


def load(cache):
    import numpy as np
    cs = json.load(open(f"{cache}/concepts.json"))
    z = np.load(f"{cache}/art.npz")
    colour_of = {}
    for c, k, s in zip(z["concept"], z["colour"], z["set"]):
        if k >= 0 and s < len(ARTISTS):
            colour_of.setdefault(int(c), set()).add(int(k))
    return Phrases(cs, colour_of)
