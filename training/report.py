"""Write docs/demo-models.md from docs/demo-models.json and the packages' own licence data.

usage: python report.py NPM DOCS
"""
import json
import sys

import art

npm, docs = sys.argv[1:3]
r = json.load(open(f"{docs}/demo-models.json"))
pc = lambda v: f"{100 * v:.1f}"
out = [f"""# The demo models

`models/demo-clip` (CLIP, 3.07 M parameters) and `models/demo-blip2` (BLIP-2 with OPT, 4.2 M parameters) are toy models, trained from
scratch on emoji and icon drawings by the recipe in [training/](../training/README.md). They know {r['concepts']} concepts. They exist so that
the whole path from a picture to a prompt can be run and tested with real weights in a few megabytes; on photographs they are useless.

All figures are of the fp16 files as shipped, loaded by transformers, in per cent, and were measured once by `training/evaluate.py`
([demo-models.json](demo-models.json)). Zero-shot: the picture against "a croissant", "a dog", ... for all {r['concepts']} names, or for the
right one among random others. Caption: the greedy caption is the expected one, letter by letter.

| pictures | n | top-1 | top-5 | of 10 | of 50 | of 200 | caption | artist of 9 |
|---|---|---|---|---|---|---|---|---|"""]
for k, v in r.items():
    if isinstance(v, dict) and "top1" in v:
        out.append(f"| {k} | {v['n']} | " + " | ".join(pc(v[x]) if x in v else "" for x in (
            "top1", "top5", "top1_of_10", "top1_of_50", "top1_of_200", "caption_exact", "artist_of_9")) + " |")
aug = r["training artists, unseen augmentation"]
out.append(f"""
Under unseen augmentation the background colour (of 12) is named right for {pc(aug['background_of_12'])}, the effect (of 8) for {pc(aug['effect_of_8'])}.
"Never trained on" means the artist: the names were learnt from other artists' drawings. openmoji is share-alike; it is tested with
and neither trained on nor shipped. noto-v1 is the older, differently drawn generation of Noto, whose present one is a training set, so it
is the easier of the two. Neither held-out set chose anything (weights, training time, augmentation).
An unrelated phrase ("trending on pixiv", "an oil painting", ... the best of {r['unrelated phrases']['phrases']}) beats the right name on {pc(r['unrelated phrases']['an unrelated phrase beats the right name'])} of training pictures.

Top-1 by training artist, clean: """ + ", ".join(f"{k} {pc(v)}" for k, v in r["by artist, clean top1"].items()) + ".")
out.append("""
## The demo pictures

Drawn by noto-v1 (Google, Apache-2.0), an artist neither model ever saw. The croissant was chosen before any training; `strawberry.png` was
picked after the first training, among the noto-v1 pictures which both models got right. How often they do says the table.
""")
for n in ("croissant.png", "strawberry.png"):
    if n in r:
        c = r[n]
        out.append(f"* `models/{n}`: caption \"{c['caption']}\"; zero-shot over all names: " + ", ".join(f"{k} {v:.3f}" for k, v in c["zero_shot"].items()) + ".")
out.append("""
A wrong phrase behind a caption lowers the similarity; true ones change it little (see the cosines in the JSON file).""")
out.append("\n## Training\n")
for w in ("clip", "blip2"):
    if f"{w} training" in r:
        t = r[f"{w} training"]
        out.append(f"* {w}: " + t.get("note", f"{t['steps']} steps of 192 pictures ({t['images']:,}), {t['minutes']:g} minutes of CPU time on each of two cores") + ".")
out.append("""
## Licences and credits

The weights were learnt from these drawings; names, groups and keywords are Unicode CLDR's, by way of emojibase-data (MIT).
Attribution sets (CC-BY) are credited here. No share-alike set was trained on.

| npm package | version | licence | by | use |
|---|---|---|---|---|""")
for s in art.TRAIN + art.HELD_OUT:
    i = json.load(open(f"{npm}/node_modules/@iconify-json/{s.pkg}/info.json"))
    v = json.load(open(f"{npm}/node_modules/@iconify-json/{s.pkg}/package.json"))["version"]
    use = "test only" if s in art.HELD_OUT else f'artist "{s.artist}"' if s.artist else "more shapes"
    out.append(f"| [@iconify-json/{s.pkg}]({i['author']['url']}) | {v} | {i['license']['spdx']} | {i['author']['name']} | {use} |")
open(f"{docs}/demo-models.md", "w").write("\n".join(out) + "\n")
