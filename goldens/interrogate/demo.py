#!/usr/bin/env python3
"""Golden prompts of clip-interrogator 0.6.0 with the embedded demo models.

    goldens/setup
    .imprompt/goldens-venv/bin/python goldens/interrogate/demo.py [--models models]

Run again whenever the models change. The package runs as it is (see make.py for what is fixed), with
the CLIP and the BLIP-2 of models/ in the place of open_clip's and the hub's, open_clip's own tokenizer
over the demo CLIP's merges, and the tables of models/demo-vocabulary. Writes goldens/demo/interrogate.json.

The pictures are goldens/demo/*.png, made once by

    python3 goldens/interrogate/demo.py --pictures NPM_FOLDER

which needs resvg-py, Pillow, and the icon sets and scikit-image as goldens/demo/README.md lists them.
"""
import argparse
import gzip
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEMO = HERE.parent / "demo"
MODES = ["best", "fast", "classic", "negative", "caption"]
# A decision nearer than this may fall the other way with another order of summation: between prompts, and
# between terms by their float16 rows, where a value on the border of two float16 numbers may be rounded either way:
# that moves a term by their distance (1.2e-4 for values up to 0.25) times the picture's value there (up to 0.4).
NEAR = {"prompts": 2e-6, "terms": 5e-5}

EMOJI = [("noto-v1", "croissant"), ("noto-v1", "red-apple"), ("noto-v1", "sunflower"), ("noto-v1", "soccer-ball"),
         ("noto", "croissant"), ("noto", "dog-face"), ("noto", "rocket"), ("noto", "castle"),
         ("twemoji", "cat-face"), ("twemoji", "guitar"), ("twemoji", "hamburger"), ("twemoji", "snowman"),
         ("fluent-emoji-flat", "tropical-fish"), ("fluent-emoji-flat", "bicycle"), ("fluent-emoji-flat", "cactus"),
         ("fluent-emoji", "strawberry"), ("fluent-emoji", "elephant"), ("fluent-emoji", "sailboat"),
         ("fxemoji", "palmtree"), ("fxemoji", "banana"), ("emojione", "umbrella"), ("emojione", "owl"),
         ("fluent-emoji-high-contrast", "key"), ("streamline-emojis", "penguin-1")]
PHOTOGRAPHS = ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"]
BACKGROUNDS = ["#ffffff", "#ffffff", "#ffe08a", "#ffffff", "#bfe3ff", "#e8e8e8"]


def make_pictures(npm):
    import resvg_py
    from PIL import Image
    DEMO.mkdir(exist_ok=True)
    for number, (package, name) in enumerate(EMOJI):
        folder = Path(npm) / "node_modules/@iconify-json" / package
        data = json.loads((folder / "icons.json").read_text())
        icon = name
        while icon not in data["icons"]:
            if icon not in data.get("aliases", {}):
                sys.exit(f"{package} has no icon {name}")
            icon = data["aliases"][icon]["parent"]
        width, height = data.get("width", 16), data.get("height", 16)
        body = data["icons"][icon]["body"]
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
               f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>')
        drawing = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=96, height=96))))
        picture = Image.new("RGB", (112, 112), BACKGROUNDS[number % len(BACKGROUNDS)])
        drawing = drawing.convert("RGBA")
        picture.paste(drawing, ((112 - drawing.width) // 2, (112 - drawing.height) // 2), drawing)
        picture.save(DEMO / f"{package}-{name}.png", optimize=True)
    import skimage  # the wheel's own data folder
    for name in PHOTOGRAPHS:
        picture = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        picture.thumbnail((128, 128))
        picture.save(DEMO / f"photograph-{Path(name).stem}.png", optimize=True)


class DemoClip:
    """A transformers CLIPModel with the face of an open_clip model.

    Texts that begin alike, as the candidates of a chain do, have their common beginning computed
    once: the tower is causal, so this and leaving out the slots after the end token change nothing.
    Every call checks some of its rows against transformers' own forward pass.
    """

    CHECKED, TOLERANCE = 2, 5e-6

    def __init__(self, model):
        self.model = model

    def to(self, device):
        return self

    def encode_image(self, images):
        return self.model.get_image_features(pixel_values=images)

    def encode_text(self, tokens):
        import torch
        ends = tokens.argmax(dim=-1)  # the end token has the highest id
        if len(tokens) < 8:
            return self.model.get_text_features(input_ids=tokens[:, :int(ends.max()) + 1])
        equal = (tokens == tokens[:1]).all(dim=0)
        shared = int(equal.long().cumprod(dim=0).sum().clamp(max=int(ends.min())))
        found = torch.empty(len(tokens), self.model.config.projection_dim)
        for part in ends.argsort(stable=True).chunk(6):  # of like length
            last = ends[part]
            hidden = self.tower(tokens[part, :int(last.max()) + 1], shared)
            found[part] = self.model.text_projection(hidden[range(len(part)), last - shared])
        tokens = tokens[:, :int(ends.max()) + 1]
        some = range(0, len(tokens), max(1, len(tokens) // self.CHECKED))
        own = self.model.get_text_features(input_ids=tokens[some])
        difference = float((found[some] / found[some].norm(dim=-1, keepdim=True)
                            - own / own.norm(dim=-1, keepdim=True)).abs().max())
        assert difference < self.TOLERANCE, difference
        return found

    def tower(self, tokens, shared):
        """Final hidden states after the first `shared` (at least one) tokens, which are the same in every row."""
        import torch

        text = self.model.text_model
        embedded = text.embeddings(input_ids=tokens)
        common, rest = embedded[:1, :shared], embedded[:, shared:]
        length, own = tokens.shape[1], tokens.shape[1] - shared
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        for layer in text.encoder.layers:
            attention = layer.self_attn

            def heads(states, linear):
                return linear(states).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

            normed = layer.layer_norm1(common), layer.layer_norm1(rest)
            keys, values = [[heads(part, linear) for part in normed]
                            for linear in (attention.k_proj, attention.v_proj)]
            together = [torch.cat([pair[0].expand(len(rest), -1, -1, -1), pair[1]], dim=2) for pair in (keys, values)]
            sdpa = torch.nn.functional.scaled_dot_product_attention
            found = (sdpa(heads(normed[0], attention.q_proj), keys[0], values[0], attn_mask=mask[:shared, :shared]),
                     sdpa(heads(normed[1], attention.q_proj), *together, attn_mask=mask[shared:]))
            common, rest = [part + attention.out_proj(new.transpose(1, 2).flatten(2))
                            for part, new in zip((common, rest), found)]
            common, rest = [part + layer.mlp(layer.layer_norm2(part)) for part in (common, rest)]
        assert rest.shape[1] == own
        return text.final_layer_norm(rest)


def open_clip_tokenizer(folder):
    """open_clip's tokenizer over the merges of a Hugging Face CLIP folder."""
    import open_clip.tokenizer as module
    # In vocab.json the end of a word is "</w>" as in open_clip, and the two special tokens come last.
    with tempfile.NamedTemporaryFile(suffix=".gz") as file:
        merges = (folder / "merges.txt").read_text().rstrip("\n").split("\n")
        if not merges[0].startswith("#version"):
            merges.insert(0, "#version")
        file.write(gzip.compress("\n".join(merges).encode()))
        file.flush()
        module._tokenizer = module.SimpleTokenizer(file.name)
    # Cleaning is most of the tokenizer's time, and leaves printable ASCII without entities as it is.
    fix_text = module.ftfy.fix_text
    module.ftfy.fix_text = lambda text: text if text.isascii() and text.isprintable() and "&" not in text else fix_text(text)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    encoder = {names.get(token, token): number for token, number in module._tokenizer.encoder.items()}
    assert encoder == json.loads((folder / "vocab.json").read_text()), "the vocabularies differ"
    return module.tokenize


class Margins:
    """Watches every decision of the package and keeps the smallest difference that made one."""

    def __init__(self, ci, tokenize):
        self.ci, self.tokenize = ci, tokenize
        self.reset()
        self.rank_top, self.similarities = ci.rank_top, ci.similarities
        ci.rank_top, ci.similarities = self.watched_top, self.watched_similarities
        table = type(ci.flavors)
        table._rank = self.watched_rank(table._rank)

    def reset(self):
        self.smallest, self.steps = {}, []

    def note(self, kind, difference):
        self.smallest[kind] = min(self.smallest.get(kind, 1.0), abs(float(difference)))

    def watched_top(self, features, texts, reverse=False):
        """The first of the texts whose tokens equal those of the best."""
        values = self.similarities(features, texts)
        sign = -1 if reverse else 1
        order = sorted(range(len(texts)), key=lambda i: (-sign * values[i], i))
        near = [i for n, i in enumerate(order) if n < 2 or abs(values[i] - values[order[0]]) < 1e-4]
        tokens = self.tokenize([texts[i] for i in near])
        same = [i for i, row in zip(near, tokens) if bool((row == tokens[0]).all())]
        other = [i for i in near if i not in same]
        if other:
            self.note("prompts", values[order[0]] - values[other[0]])
        self.steps.append(sign * values[order[0]])
        return texts[min(same)]

    def watched_similarities(self, features, texts):
        values = self.similarities(features, texts)
        ordered = sorted({str(text): value for text, value in zip(texts, values)}.values())
        if len(ordered) > 1:
            self.note("prompts", ordered[-1] - ordered[-2])
        return values

    def watched_rank(self, inner):
        import torch

        def _rank(table, features, embeds, top_count=1, reverse=False):
            tops = inner(table, features, embeds, top_count=top_count, reverse=reverse)
            if top_count <= 128 and len(embeds):  # an order that shows in the prompt
                rows = torch.stack([torch.from_numpy(row) for row in embeds])
                values = (rows @ features[0]).sort(descending=True).values[:top_count + 1]
                gaps = (values[:-1] - values[1:])
                if len(gaps):
                    self.note("terms", gaps.min())
            return tops

        return _rank


def picture_files():
    files = sorted(DEMO.glob("*.png"))
    if len(files) < 20:
        sys.exit(f"{DEMO}: {len(files)} pictures, at least 20 are needed; see --pictures")
    return files


def main(models):
    import warnings
    warnings.filterwarnings("ignore")
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, Blip2ForConditionalGeneration, Blip2Processor
    from transformers import BlipImageProcessor, CLIPImageProcessor, CLIPModel
    from open_clip.transform import image_transform
    from transformers.utils import logging
    logging.set_verbosity_error()
    import make

    torch.set_num_threads(1)  # the batches are small, and others may be at work

    make.make_deterministic()
    clip = CLIPModel.from_pretrained(models / "demo-clip", torch_dtype=torch.float32).eval()
    processor = CLIPImageProcessor.from_pretrained(models / "demo-clip")
    # open_clip's own transform (it crops otherwise than transformers does) with the model's numbers.
    preprocess = image_transform(processor.crop_size["height"], is_train=False,
                                 mean=tuple(processor.image_mean), std=tuple(processor.image_std))
    tokenize = open_clip_tokenizer(models / "demo-clip")
    ci = make.interrogator(DemoClip(clip), tokenize, models / "demo-vocabulary", 2048, 2048,
                           preprocess)
    del ci.generate_caption  # the package's own
    ci.caption_model = Blip2ForConditionalGeneration.from_pretrained(
        models / "demo-blip2", torch_dtype=torch.float32).eval()
    ci.caption_processor = Blip2Processor(BlipImageProcessor.from_pretrained(models / "demo-blip2"),
                                          AutoTokenizer.from_pretrained(models / "demo-blip2"))
    ci.config.caption_model_name = "blip2-2.7b"
    ci.caption_offloaded = False
    margins = Margins(ci, tokenize)

    cases = []
    for file in picture_files():
        image = Image.open(file).convert("RGB")
        with torch.no_grad():
            caption = ci.generate_caption(image)
            features = ci.image_to_features(image)
        for mode in MODES:
            margins.reset()
            with torch.no_grad():
                record = make.run(ci, image, mode, caption, None, None)
            for before, after in zip(margins.steps, margins.steps[1:]):
                margins.note("prompts", after - before)
            if mode == "best" and record["prompt"] not in [prompt for prompt, _ in record["candidates"][1:3]]:
                margins.smallest.pop("terms", None)  # their order does not show
            cases.append({"picture": file.name, "mode": mode, "caption": caption, **record,
                          "tokens": len(tokenize_count(record["prompt"])), "margins": margins.smallest})
            print(file.name, mode, round(record["similarity"], 4), margins.smallest, record["prompt"][:90], flush=True)
        cases[-1]["image_embeds"] = [round(float(value), 7) for value in features[0]]
    hashes = {file.relative_to(models).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
              for file in sorted(models.glob("demo-*/*"))
              if file.suffix in (".safetensors", ".txt", ".json")}
    make.write("../demo/interrogate.json", {"pins": make.pins(), "models": hashes, "near": NEAR, "cases": cases})
    clear = [case for case in cases if all(margin > NEAR[kind] for kind, margin in case["margins"].items())]
    print(f"{len(cases)} prompts, {len(clear)} of them without a decision nearer than {NEAR}:",
          {mode: sum(case["mode"] == mode for case in clear) for mode in MODES})


def tokenize_count(text):
    import open_clip.tokenizer as module
    return module._tokenizer.encode(text)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--pictures", metavar="NPM_FOLDER")
    arguments = parser.parse_args()
    if arguments.pictures:
        make_pictures(arguments.pictures)
    else:
        main(arguments.models)
