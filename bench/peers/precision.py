"""The section `precision`: what fewer bits change in embeddings, rankings, prompts and captions."""
import json
import shutil

import numpy
from safetensors.numpy import load_file

import bench as common
from bench import Failed, ROOT, models, precisions, repository
from sections import shown, spread, terms, vocabulary

PICTURES = ROOT / "goldens/demo"
# In the order in which the reference merges them.
TABLES = ("artists", "flavors", "mediums", "movements", "trendings")
MODES = ("best", "fast", "classic", "negative")
# What the reference answers with the demo models.
GOLDEN_CAPTIONS, GOLDEN_PROMPTS = PICTURES / "captions.json", PICTURES / "interrogate.json"


def asked(bench, at, command, *arguments):
    """The JSON lines of a command of ours on a repository."""
    told = bench.run([common.IMPROMPT, command, "--repo", at, *arguments])
    return [json.loads(line) for line in told.splitlines()]


def embeddings(bench, at, *arguments):
    return numpy.array([line["embedding"] for line in asked(bench, at, "embed", *arguments)], dtype=numpy.float32)


def ranking(at, images):
    """Every label's place for every picture, by the repository's own label tables."""
    rows = numpy.concatenate([load_file(at / f"tagger/1/tables/{table}.safetensors")["embeds"] for table in TABLES])
    return numpy.argsort(-(images @ rows.astype(numpy.float32).T), axis=1, kind="stable")


def apart(rows):
    """Mean cosine of two different rows: near 1, a cosine near 1 with float32 says little."""
    count = len(rows)
    return float((numpy.square(rows.sum(axis=0)).sum() - count) / (count * (count - 1)))


def rows(bench, title, repositories, pictures, texts):
    """Embeddings and rankings of each precision against those of float32."""
    images = {precision: embeddings(bench, at, *pictures) for precision, at in repositories.items()}
    words = {precision: embeddings(bench, at, "--text", *texts) for precision, at in repositories.items()}
    reduced = [precision for precision in repositories if precision != "f32"]
    for what, found in ((f"{len(pictures)} image embeddings", images), (f"{len(texts):,} text embeddings", words)):
        cosines = {precision: (found[precision] * found["f32"]).sum(axis=1) for precision in reduced}
        for name, of in (("least", numpy.min), ("mean", numpy.mean)):
            bench.row(f"{title}: {what}, {name}", "cosine", {precision: [float(of(values))] for precision, values in cosines.items()},
                      "higher", "with float32's")
    places = {precision: ranking(at, images[precision]) for precision, at in repositories.items()}
    first = {precision: [100 * float((places[precision][:, 0] == places["f32"][:, 0]).mean())] for precision in reduced}
    ten = {precision: [10 * float(numpy.mean([len({*mine} & {*theirs}) for mine, theirs in
                                              zip(places[precision][:, :10], places["f32"][:, :10])]))] for precision in reduced}
    note = f"of {places['f32'].shape[1]:,} labels for each picture; every precision has label tables of its own"
    bench.row(f"{title}: best label as in float32", "%", first, "higher", note)
    bench.row(f"{title}: of the best 10 labels in float32's", "%", ten, "higher", note)
    bench.check(f"{title}: mean cosine of two different embeddings in float32", f"pictures {apart(images['f32']):.3f}, texts {apart(words['f32']):.3f}")
    return images["f32"]


def equal(found, precision):
    """How many answers are float32's."""
    return [sum(mine == theirs for mine, theirs in zip(found[precision], found["f32"], strict=True))]


def terms_shared(mine, theirs):
    """The share of the parts of one prompt that are in the other too."""
    parts = set(theirs.split(", "))
    return len(parts & set(mine.split(", "))) / len(parts)


def prompts(bench, repositories, towers, pictures, images):
    """Prompts of every mode: equal to float32's, and as near to the picture, or as far."""
    golden = {(case["picture"], case["mode"]): case["prompt"] for case in json.loads(GOLDEN_PROMPTS.read_text())["cases"]}
    reduced = [precision for precision in repositories if precision != "f32"]
    count = f"of {len(pictures)}"
    for mode in MODES:
        def of(at):
            return [line["prompt"] for line in asked(bench, at, "interrogate", "--mode", mode, "--json", *pictures)]

        whole = {precision: of(at) for precision, at in repositories.items()}
        bench.raw.append({"mode": mode, "prompts": whole})
        wanted = [golden[picture.name, mode] for picture in pictures]
        bench.check(f"mode {mode}, float32: prompts equal to clip-interrogator's",
                    f"{sum(mine == theirs for mine, theirs in zip(whole['f32'], wanted, strict=True))} {count}")
        bench.row(f"demo models, mode {mode}: prompts equal", count, {precision: equal(whole, precision) for precision in reduced}, "higher")
        if mode != "negative":  # which has no caption
            clip = {precision: of(at) for precision, at in towers.items()} | {"f32": whole["f32"]}
            bench.raw.append({"mode": mode, "captioner": "f32", "prompts": clip})
            bench.row(f"demo models, mode {mode}: prompts equal, captioner in float32", count,
                      {precision: equal(clip, precision) for precision in towers}, "higher")
        shared = {precision: [100 * float(numpy.mean([terms_shared(*pair) for pair in zip(whole[precision], whole["f32"], strict=True)]))]
                  for precision in reduced}
        bench.row(f"demo models, mode {mode}: of float32's terms found", "%", shared, "higher")
        texts = list(dict.fromkeys(prompt for found in whole.values() for prompt in found))
        place = {text: number for number, text in enumerate(texts)}
        words = embeddings(bench, repositories["f32"], "--text", *texts)
        similarity = {precision: [float(numpy.mean([image @ words[place[prompt]] for image, prompt in zip(images, found, strict=True)]))]
                      for precision, found in whole.items()}
        bench.row(f"demo models, mode {mode}: picture and prompt, mean", "cosine", similarity, "lower" if mode == "negative" else "higher",
                  "by float32's embeddings, whatever found the prompt; of mode negative the lower the better")


def captions(bench, repositories, pictures):
    """Captions of the demo captioner, which begin with nothing or continue a text."""
    golden = json.loads(GOLDEN_CAPTIONS.read_text())
    names = {picture.name for picture in pictures}
    wanted = {(case["picture"], case["prompt"]): case["caption"] for case in golden["captions"] if case["picture"] in names}
    texts = list(dict.fromkeys(text for _, text in wanted))
    found = {}
    for precision, at in repositories.items():
        found[precision] = [line["caption"] for text in texts for line in asked(
            bench, at, "caption", "--json", "--max-new-tokens", golden["max_new_tokens"], *(["--text", text] if text else []), *pictures)]
    theirs = [wanted[picture.name, text] for text in texts for picture in pictures]
    bench.raw.append({"captions": found})
    bench.check("float32: captions equal to transformers'",
                f"{sum(a == b for a, b in zip(found['f32'], theirs, strict=True))} of {len(theirs)}")
    bench.row("demo captioner: captions equal", f"of {len(theirs)}", {precision: equal(found, precision) for precision in repositories if precision != "f32"},
              "higher", "greedy, of each picture alone and after four beginnings")


def precision(bench):
    """What fewer bits change: embeddings, rankings, prompts and captions against float32."""
    bench.rounds = 1
    pictures = sorted(PICTURES.glob("*.png"))[:4 if bench.quick else None]
    # Float16 is kept where it is lossless alone: there is nothing to compare.
    kinds = precisions("high", "int8", "int4")
    if len(kinds) < 4:
        raise Failed(f"`imprompt build` has the precisions {', '.join(kinds)} alone")
    repositories = {kind: repository(bench, "demo", kind, **common.DEMO) for kind in kinds}
    # With int4 CLIP is int8 too.
    towers = {"int8": repository(bench, "demo-clip", "int8", **common.DEMO, parts=("clip_image", "clip_text"))}
    labels = [line for table in ("flavors", "mediums", "movements", "negative")
              for line in (common.DEMO["vocabulary"] / f"{table}.txt").read_text().splitlines()]
    labels = [label for label in labels if label and not label.startswith("-")]  # "-1" is a flag to a command
    images = rows(bench, "demo CLIP", repositories, pictures, labels)
    prompts(bench, repositories, towers, pictures, images)
    captions(bench, repositories, pictures)
    # Full size, and random: differences of noise.
    name = "clip-vit-b-32" if bench.quick else "clip-vit-l-14"
    clip, = models(bench.python, name)
    words = vocabulary("some", {"flavors": 400 if bench.quick else 2000})
    sizes = {kind: repository(bench, f"{name}-{words.name}", kind, clip=clip, vocabulary=words) for kind in kinds}
    rows(bench, f"{shown(name)}, random", sizes, pictures, spread(terms("flavors"), 64 if bench.quick else 512))
    for kind, at in sizes.items():
        if kind != "f32":
            shutil.rmtree(at)
