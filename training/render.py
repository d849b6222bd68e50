"""Render every picture of every concept once, to one array of 96 x 96 RGBA.

usage: python render.py NPM_FOLDER CACHE_FOLDER
Writes CACHE/art.npz (pictures, concept and set numbers, main colour) and CACHE/concepts.json.
"""
import dataclasses
import io
import json
import re
import sys

import numpy as np
import resvg_py
from PIL import Image

import art
import concepts
from colours import main_colour

SIZE = 96
SUFFIX = re.compile(r"(-(fill|filled|solid|bold|duotone|outline|outlined|twotone|color|broken|linear|"
                    r"rounded|sharp|[0-9]+|line|alt|variant|stroke|round|square|regular))+$")


class Icons:
    """One iconify package: SVG text by icon name."""

    def __init__(self, root, pkg):
        base = f"{root}/node_modules/@iconify-json/{pkg}/"
        self.data = json.load(open(base + "icons.json"))
        self.names = set(self.data["icons"]) | set(self.data.get("aliases", {}))
        self.flat = {n.replace("-", ""): n for n in sorted(self.names, reverse=True)}

    def svg(self, name, seen=0):
        d = self.data
        icon = d["icons"].get(name)
        if icon is None:
            return self.svg(d["aliases"][name]["parent"], seen + 1) if seen < 5 else None
        w = icon.get("width", d.get("width", 16))
        h = icon.get("height", d.get("height", 16))
        x, y = icon.get("left", d.get("left", 0)), icon.get("top", d.get("top", 0))
        return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{x} {y} {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>')

    def find(self, concept, emoji):
        """The icon names of a concept: exact CLDR names in emoji sets, the concept's own name elsewhere."""
        names = []
        for label in concept.labels if emoji else [concept.name] + concept.labels[:1]:
            s = concepts.slug(label)
            for n in (s, self.flat.get(s.replace("-", ""))):
                if n in self.names and n not in names:
                    names.append(n)
            if emoji and not names:      # streamline numbers its variants
                names += [n for n in (s + "-1", s + "-2") if n in self.names]
        if not emoji:
            s = concepts.slug(concept.name)
            names += [n for n in sorted(self.names) if n not in names and SUFFIX.sub("", n) == s][:8]
        return names


def picture(svg, size):
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    im = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if im.size != (size, size):          # not square: centre it
        im.thumbnail((size, size), Image.BICUBIC)
        box = Image.new("RGBA", (size, size))
        box.paste(im, ((size - im.width) // 2, (size - im.height) // 2))
        im = box
    return np.asarray(im)


def render(root, sets, cs, size):
    out = []
    for si, s in sets:
        icons = Icons(root, s.pkg)
        emoji = bool(s.artist) or s in art.HELD_OUT
        n0 = len(out)
        for ci, c in enumerate(cs):
            for k, name in enumerate(icons.find(c, emoji)):
                try:
                    im = picture(icons.svg(name), size)
                except Exception as e:           # a broken icon is no reason to stop
                    print("skip", s.pkg, name, str(e)[:60])
                    continue
                if (im[..., 3] > 128).mean() > 0.01:
                    out.append((im, ci, si, k))
        print(s.pkg, len(out) - n0, "pictures of", len({o[1] for o in out[n0:]}), "concepts", flush=True)
    return out


def main():
    root, cache = sys.argv[1:3]
    cs = concepts.load(root)
    json.dump([dataclasses.asdict(c) for c in cs], open(f"{cache}/concepts.json", "w"), indent=1, ensure_ascii=False)
    print(len(cs), "concepts")
    out = render(root, enumerate(art.TRAIN), cs, SIZE)
    pix = np.stack([o[0] for o in out])
    mono = np.array([art.TRAIN[o[2]].mono for o in out])
    np.savez(f"{cache}/art.npz", pix=pix, concept=np.array([o[1] for o in out]), set=np.array([o[2] for o in out]),
             variant=np.array([o[3] for o in out]), mono=mono, colour=np.array([-1 if m else main_colour(p) for p, m in zip(pix, mono)]))
    print(len(pix), "pictures")


if __name__ == "__main__":
    main()
