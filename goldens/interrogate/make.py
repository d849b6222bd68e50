#!/usr/bin/env python3
"""Golden prompts of clip-interrogator 0.6.0 over an exact CLIP stand-in (fake_clip.py).

    goldens/setup; .imprompt/goldens-venv/bin/python goldens/interrogate/make.py

Writes, beside this file: the vocabularies (vocabulary-*/), modes.json (prompts of every mode),
rank.json (two-stage rankings of embeddings that float16 rounds), labels.json (label lists and hashes), and
table.safetensors (a cache file as the reference writes it).

The package runs as it is; only what it leaves to chance is fixed: iteration over the chain's set
goes by merged index, and topk's ties go to the lowest index.
"""
import hashlib
import json
import os
import platform
import random
import shutil
import struct
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")
import numpy as np
import torch

import clip_interrogator.clip_interrogator as package
import fake_clip
from fake_clip import FakeClip, image_points, mix

HERE = Path(__file__).parent
SYLLABLES = ("ka lo mi ren tas vel bor quin sha dra pel nor fig wem zu tri ost ela mun gar hesh yol "
             "cit bla stro umi ank fer").split()
TABLES = ["artists", "flavors", "mediums", "movements", "trendings", "negative"]


class Label(str):
    """A label that knows its place in the merged table."""

    def __new__(cls, text, index):
        label = super().__new__(cls, text)
        label.index = index
        return label


class IndexSet:
    """A set of labels that is iterated by index; equal ones count once, at the lowest index."""

    def __init__(self, labels):
        self.labels = {}
        for label in sorted(labels, key=lambda label: label.index):
            self.labels.setdefault(str(label), label)

    def remove(self, text):
        del self.labels[str(text)]

    def __iter__(self):
        return iter(self.labels.values())


def stable_topk(values, count, dim):
    ordered, indices = torch.sort(values, dim=dim, descending=True, stable=True)
    return ordered.narrow(dim, 0, count), indices.narrow(dim, 0, count)


def make_deterministic():
    merge = package._merge_tables

    def merge_with_index(tables, ci):
        merged = merge(tables, ci)
        merged.labels = [Label(text, index) for index, text in enumerate(merged.labels)]
        return merged

    package._merge_tables = merge_with_index
    package.set = IndexSet
    torch.Tensor.topk = stable_topk


def interrogator(clip, tokenize, data_path, chunk_size, count, preprocess=lambda image: image):
    config = package.Config(caption_model_name=None, cache_path=None, download_cache=False,
                            chunk_size=chunk_size, flavor_intermediate_count=count, device="cpu",
                            data_path=str(data_path), quiet=True)
    config.clip_model, config.clip_preprocess = clip, preprocess
    package.open_clip.get_tokenizer = lambda name: tokenize
    ci = package.Interrogator(config)
    ci.generate_caption = lambda image: ""
    flavors = len(ci.flavors.labels)
    ci.flavors.labels = [Label(text, i) for i, text in enumerate(ci.flavors.labels)]
    ci.negative.labels = [Label(text, flavors + i) for i, text in enumerate(ci.negative.labels)]
    return ci


def run(ci, image, mode, caption, min_flavors, max_flavors):
    """One prompt, and what the package computed on the way."""
    record = {}
    similarities, rank_top = ci.similarities, ci.rank_top
    tops = []

    def recorded_similarities(features, texts):
        values = similarities(features, texts)
        record["candidates"] = [[str(text), value] for text, value in zip(texts, values)]
        return values

    def recorded_top(features, texts, reverse=False):
        top = rank_top(features, texts, reverse=reverse)
        tops.append(str(top))
        return top

    ci.similarities, ci.rank_top = recorded_similarities, recorded_top
    bounds = {} if max_flavors is None else {"max_flavors": max_flavors}
    if mode == "best":
        if min_flavors is not None:
            bounds["min_flavors"] = min_flavors
        prompt = ci.interrogate(image, caption=caption, **bounds)
    elif mode == "fast":
        prompt = ci.interrogate_fast(image, caption=caption, **bounds)
    elif mode == "classic":
        prompt = ci.interrogate_classic(image, caption=caption, **bounds)
    elif mode == "negative":
        prompt = ci.interrogate_negative(image, **bounds)
    else:
        prompt = caption
    ci.similarities, ci.rank_top = similarities, rank_top
    record["prompt"] = str(prompt)
    record["similarity"] = ci.similarity(ci.image_to_features(image), prompt)
    record["chain_steps"] = len(tops)
    return record


# Vocabularies

def words(seed, low, high):
    count = low + mix(seed) % (high - low + 1)
    word = lambda i: "".join(SYLLABLES[mix(seed * 31 + i * 7 + j) % len(SYLLABLES)]
                             for j in range(1 + mix(seed + i) % 3))
    return " ".join(word(i) for i in range(count))


def write_vocabulary(name, sizes, odd):
    folder = HERE / f"vocabulary-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for t, table in enumerate(t for t in TABLES if t != "trendings"):
        lines = []
        seed = 1_000_000 * (t + 1)
        while len(lines) < sizes[table]:
            seed += 1
            text = words(seed, 1, 4 if table == "flavors" else 2)
            if table == "artists":
                text = text.title()
            if table == "mediums":
                text = "a " + text
            lines.append(text.encode())
        for place, line in odd.get(table, {}).items():
            lines[place] = line if isinstance(line, bytes) else line.encode()
        end = b"" if table == "negative" else b"\n"
        data = b"\n".join(lines) + end if lines else b""
        (folder / f"{table}.txt").write_bytes(data)
    return folder


def vocabularies():
    large_odd = {
        "artists": {3: "Lomi Tasvel, Jr.", 50: "Élafer Œst", 51: "ÉLAFER œst", 700: "Ka Bor, Sr."},
        # An empty line, blanks at an end, malformed UTF-8, a lone carriage return (two labels),
        # strings that occur twice, near and far apart, and labels equal but for their case.
        "flavors": {7: "", 12: "trailing blank ", 13: "\ttab before", 40: b"caf\xe9 light",
                    41: b"lone\xed\xa0\x80surrogate", 90: "first half\rsecond half",
                    100: "elaka trios", 101: "elaka trios", 2500: "elaka trios", 5100: "ELAKA trios",
                    300: "by lomi tasvel, jr.", 4000: "artstation", 4100: "trending on Artstation",
                    4200: "雪の山", 4201: "\u00a0no-break\u3000", 5199: "the last flavor\x1c"},
        "mediums": {0: "a", 5: "a drawing"},
        "movements": {10: "elaka trios"},
        "negative": {0: "elaka trios", 1: "lowres", 2: "blurry", 3: "lowres"},
    }
    small_odd = {"flavors": {0: "", 5: "kalo, miren"}, "mediums": {1: "a painting"}}
    return {
        "large": write_vocabulary("large", dict(artists=900, flavors=5200, mediums=95, movements=200,
                                                negative=41), large_odd),
        "small": write_vocabulary("small", dict(artists=20, flavors=300, mediums=12, movements=15,
                                                negative=10), small_odd),
        "sparse": write_vocabulary("sparse", dict(artists=0, flavors=60, mediums=0, movements=3,
                                                  negative=0), {}),
    }


# Prompts

# One token a syllable: around the 75 text tokens that fit.
LONG = [" ".join(SYLLABLES[mix(i) % len(SYLLABLES)] for i in range(n)) for n in (60, 68, 73, 74, 75, 76, 90)]
CAPTIONS = ["a small red house", "kalo miren on a table, with borfig", "a painting of quinsha", "A",
            ", leading separator", "two words, , , and more,", *LONG]
# chunk_size, flavor_intermediate_count, min_flavors, max_flavors
BEST = [(2048, 256, None, None), (1024, 200, None, None), (333, 100, 0, 5), (2048, 64, 20, 10),
        (500, 150, 0, 128), (1000, 300, 128, 128), (2048, 2048, None, None), (120, 64, 3, 40),
        (1024, 1024, 8, 32), (2048, 40, 3, 30)]
FAST = [(2048, 2048, None, None), (1024, 1024, None, 128), (333, 100, None, 40), (100, 50, None, 1),
        (7366, 10, None, 12), (7367, 10, None, 12), (700, 10, None, 128)]
CLASSIC = [(2048, 2048, None, None), (1024, 1024, None, 1), (500, 100, None, 32), (97, 50, None, 12)]
NEGATIVE = [(2048, 256, None, None), (1024, 100, None, 5), (333, 64, None, 128), (2048, 2048, None, 3),
            (600, 30, None, 32)]
SETTINGS = {"best": BEST, "fast": FAST, "classic": CLASSIC, "negative": NEGATIVE}
BIASES = [0, 1, 0, 2]


def case_plan():
    """(image, vocabulary, bias, mode, setting, caption)"""
    plan = []
    for image in range(24):
        vocabulary = "small" if image % 3 == 2 else "large"
        bias = BIASES[image % 4]
        for m, (mode, settings) in enumerate(SETTINGS.items()):
            caption = CAPTIONS[(image + 5 * m) % len(CAPTIONS)]
            plan.append((image, vocabulary, bias, mode, settings[(image + m) % len(settings)], caption))
    for n, caption in enumerate(LONG):
        plan += [(n, "small", 0, mode, SETTINGS[mode][0], caption) for mode in ("best", "fast", "classic")]
    plan += [
        (0, "large", 0, "best", BEST[0], ""), (1, "small", 1, "best", BEST[0], ""),
        (2, "small", 0, "fast", FAST[0], ""), (3, "small", 0, "classic", CLASSIC[0], ""),
        (4, "large", 0, "caption", BEST[0], CAPTIONS[0]), (5, "small", 1, "caption", BEST[0], LONG[6]),
        (6, "sparse", 0, "fast", FAST[0], CAPTIONS[0]), (7, "sparse", 0, "negative", NEGATIVE[0], "a"),
        (8, "sparse", 2, "fast", FAST[3], CAPTIONS[1]), (9, "sparse", 2, "negative", NEGATIVE[2], "a"),
    ]
    # A caption that starts with the medium: "a" is a medium of the large vocabulary.
    plan += [(n, "large", 0, "classic", CLASSIC[n % 4], f"{{medium}} of {CAPTIONS[1]}") for n in range(4)]
    # One flavor at most: here the classic or the fast prompt may win, or the caption.
    plan += [(image, "small", bias, "best", (2048, 256, 0, 1), caption) for image, bias, caption in [
        (37, 0, CAPTIONS[0]), (31, 1, "hesh stroyolsha"), (40, 0, CAPTIONS[0]), (24, 1, CAPTIONS[0]),
        (25, 0, "lotas"), (26, 1, "mi"), (29, 0, "mun stro wem"), (41, 0, "dra")]]
    return plan


def make_modes(folders):
    images, cases, interrogators, points = [], [], {}, {}
    for image, vocabulary, bias, mode, setting, caption in case_plan():
        chunk_size, count, min_flavors, max_flavors = setting
        key = (vocabulary, bias, chunk_size, count)
        if key not in interrogators:
            interrogators[key] = interrogator(FakeClip(bias), fake_clip.tokenize, folders[vocabulary],
                                              chunk_size, count)
        ci = interrogators[key]
        if (image, vocabulary, bias) not in points:
            chosen = random.Random(image)
            texts = [chosen.choice(table.labels) for table in (ci.flavors, ci.artists, ci.movements, ci.flavors)
                     if table.labels]
            points[image, vocabulary, bias] = len(images)
            images.append(image_points(ci.clip_model, texts, 8 * (1 + image % 4), image).tolist())
        index = points[image, vocabulary, bias]
        features = torch.tensor(images[index], dtype=torch.float32) / fake_clip.SCALE
        if "{medium}" in caption:
            caption = caption.replace("{medium}", ci.mediums.rank(features[None], 1)[0])
        record = run(ci, features, mode, caption, min_flavors, max_flavors)
        cases.append({"vocabulary": vocabulary, "bias": bias, "image": index, "mode": mode,
                      "chunk_size": chunk_size, "flavor_intermediate_count": count, "caption": caption,
                      "min_flavors": min_flavors, "max_flavors": max_flavors, **record})
        print(len(cases), mode, vocabulary, bias, setting, round(record["similarity"], 4),
              record["chain_steps"], record["prompt"][:70], flush=True)
    return {"pins": pins(), "images": images, "cases": cases}


# Rankings of values that float16 rounds, and whose dot products are exact in float32 all the same:
# rows are multiples of 2**-10 in 1..2 once rounded, the image of 2**-8 below 1.

def row_values(seed, rows, columns):
    keys = [mix(seed * 1_000_003 + i) for i in range(rows * columns)]
    values = [(-1) ** (key & 1) * (1 + (key >> 50) / 2**14) for key in keys]
    return np.array(values, np.float32).reshape(rows, columns)


def image_values(seed, columns):
    return np.array([[(mix(seed * 1_000_003 + i) >> 55) / 256 - 1 for i in range(columns)]], np.float32)


def make_rank():
    columns, cases = 24, []
    for seed, (rows, chunk_size, count, reverse) in enumerate([
            (5000, 2048, 2048, False), (5000, 2048, 300, True), (5000, 1024, 1024, False),
            (2048, 2048, 40, False), (2048, 2048, 40, True), (2049, 2048, 40, False),
            (3001, 1000, 500, True), (3000, 1000, 2000, False), (10, 2048, 2048, False)]):
        table = package.LabelTable.__new__(package.LabelTable)
        embeds = row_values(seed, rows, columns).astype(np.float16).astype(np.float32)
        image = image_values(100 + seed, columns)
        table.labels, table.embeds = list(range(rows)), list(embeds)
        table.chunk_size, table.device = chunk_size, "cpu"
        table.config = package.Config(quiet=True)
        ranking = table.rank(torch.from_numpy(image), count, reverse=reverse)
        digest = hashlib.sha256(b"".join(struct.pack("<I", i) for i in ranking)).hexdigest()
        cases.append({"seed": seed, "rows": rows, "columns": columns, "chunk_size": chunk_size,
                      "count": count, "reverse": reverse, "kept": len(ranking),
                      "first": ranking[:12], "sha256": digest})
    return {"pins": pins(), "cases": cases}


# Label lists and cache files

def make_labels(folders):
    files, hashes = [], {}
    chosen = random.Random(7)
    fragments = [b"a", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\xe9", b"\xc3\xa9", b"\xf0\x9f\x98", b"\xe2\x80",
                 b"\xed\xa0\x80", b"\xc0\xaf", b"\xff", b"\xf4\x90\x80\x80", b"\x1c", b"\x1f", b"\x85",
                 b"\xc2\x85", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\x0b", b"\x0c", b"\xe3\x80\x80", b",", b"\x00",
                 b"\xf0\x9f\x98\x80", b"\xe1\xa0\x8e", b"\xe2\x80\x8b"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        for _ in range(400):
            data = b"".join(chosen.choice(fragments) for _ in range(chosen.randrange(14)))
            path.write_bytes(data)
            files.append([data.hex(), package.load_list(str(path))])
    ci = {name: interrogator(FakeClip(0), fake_clip.tokenize, folder, 2048, 2048)
          for name, folder in folders.items()}
    for name, one in ci.items():
        tables = [getattr(one, table).labels for table in TABLES]
        hashes[name] = {table: [len(labels), hashlib.sha256(",".join(labels).encode()).hexdigest()]
                        for table, labels in zip(TABLES, tables)}
    # The lists of the wheel itself are not in this repository, only what they must come to.
    import clip_interrogator
    wheel = Path(clip_interrogator.__file__).parent / "data"
    one = interrogator(Nothing(), fake_clip.tokenize, wheel, 2048, 2048)
    hashes["wheel"] = {table: [len(getattr(one, table).labels),
                               hashlib.sha256(",".join(getattr(one, table).labels).encode()).hexdigest()]
                       for table in TABLES}
    return {"pins": pins(), "files": files, "hashes": hashes}


class Nothing(FakeClip):
    """Embeds nothing: for counting labels."""

    def __init__(self):
        super().__init__(0)

    def encode_text(self, tokens):
        return torch.ones(len(tokens), 1)


def make_table(folders):
    with tempfile.TemporaryDirectory() as folder:
        config = package.Config(caption_model_name=None, cache_path=folder, download_cache=False,
                                device="cpu", quiet=True)
        ci = type("Ci", (), {"clip_model": FakeClip(1), "config": config,
                             "tokenize": staticmethod(fake_clip.tokenize)})
        labels = package.load_list(str(folders["small"]), "mediums.txt")
        package.LabelTable(labels, "mediums", ci)
        shutil.copy(Path(folder) / "ViT-L-14_openai_mediums.safetensors", HERE / "table.safetensors")


def pins():
    names = ["clip-interrogator", "open_clip_torch", "transformers", "torch", "numpy", "safetensors"]
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write(name, data):
    lists = ("cases", "images", "files")
    lines = [json.dumps({key: value for key, value in data.items() if key not in lists})[:-1]]
    for key in (key for key in lists if key in data):
        body = ",\n".join(json.dumps(item, ensure_ascii=False) for item in data[key])
        lines.append(f', "{key}": [\n{body}\n]')
    (HERE / name).write_text("".join(lines) + "}\n")


if __name__ == "__main__":
    make_deterministic()
    folders = vocabularies()
    write("labels.json", make_labels(folders))
    make_table(folders)
    write("rank.json", make_rank())
    write("modes.json", make_modes(folders))
    os.sync()
