"""Measure the shipped folders, by way of transformers, and write docs/demo-models.json.

usage: python evaluate.py NPM CACHE MODELS DOCS [--quick]

Pictures: "clean" is a drawing at 85 % of a white square, made small by Pillow's bicubic filter, as
the processors do.  "augmented" is the training's augmentation with a seed it never used.  The
held-out artists are rendered here at 256 pixels and are used nowhere else.
"""
import argparse
import json
import os

import numpy as np
import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor, CLIPModel, CLIPProcessor

import art
import conditions
import render
from train_clip import Data


def on_white(rgba, share=0.85):
    """uint8 RGBA array -> a white RGB picture of the same size with the drawing at `share` of it."""
    im = Image.fromarray(rgba)
    n = im.width
    k = round(n * share)
    out = Image.new("RGBA", (n, n), "white")
    small = im.resize((k, k), Image.BICUBIC)
    out.alpha_composite(small, ((n - k) // 2, (n - k) // 2))
    return out.convert("RGB")


class Models:
    def __init__(self, folder, names):
        self.clip = CLIPModel.from_pretrained(f"{folder}/demo-clip", torch_dtype=torch.float32).eval()
        self.cp = CLIPProcessor.from_pretrained(f"{folder}/demo-clip")
        self.blip = Blip2ForConditionalGeneration.from_pretrained(f"{folder}/demo-blip2", torch_dtype=torch.float32).eval()
        self.bp = Blip2Processor.from_pretrained(f"{folder}/demo-blip2")
        self.names = self.text(names)

    @torch.no_grad()
    def text(self, texts):
        out = []
        for k in range(0, len(texts), 256):
            t = self.cp.tokenizer(texts[k:k + 256], padding=True, return_tensors="pt")
            f = self.clip.text_projection(self.clip.text_model(**t).pooler_output)
            out.append(torch.nn.functional.normalize(f, dim=-1))
        return torch.cat(out)

    @torch.no_grad()
    def image(self, pixels):
        f = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        return torch.nn.functional.normalize(f, dim=-1)

    @torch.no_grad()
    def captions(self, pixels):
        out = []
        for k in range(0, len(pixels), 256):
            ids = self.blip.generate(pixel_values=pixels[k:k + 256], max_new_tokens=24)
            out += [t.strip() for t in self.bp.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return out


def pixels_of(models, pictures):
    """Through both processors; they must agree, since both make 64 x 64 of a square."""
    a = models.cp.image_processor(pictures, return_tensors="pt")["pixel_values"]
    b = models.bp.image_processor(pictures[:8], return_tensors="pt")["pixel_values"]
    assert (a[:8] - b).abs().max() < 1e-4
    return a


def score(models, pixels, concept, captions, lists=(10, 50, 200)):
    """All figures of one set of pictures."""
    f = torch.cat([models.image(pixels[k:k + 256]) for k in range(0, len(pixels), 256)])
    s = f @ models.names.T
    rank = (s > s.gather(1, concept[:, None])).sum(1)
    out = {"n": len(pixels), "top1": (rank == 0).float().mean().item(), "top5": (rank < 5).float().mean().item()}
    g = torch.Generator().manual_seed(1)
    for n in lists:
        other = torch.rand(len(pixels), s.shape[1], generator=g)
        other.scatter_(1, concept[:, None], -1)
        pick = other.topk(n - 1, 1).indices
        out[f"top1_of_{n}"] = (s.gather(1, pick).max(1).values < s.gather(1, concept[:, None])[:, 0]).float().mean().item()
    said = models.captions(pixels)
    out["caption_exact"] = float(np.mean([a == captions[c] for a, c in zip(said, concept.tolist())]))
    out["caption_is_a_known_one"] = float(np.mean([a in set(captions) for a in said]))
    return out, f


def main():
    ap = argparse.ArgumentParser()
    for x in ("npm", "cache", "models", "docs"):
        ap.add_argument(x)
    ap.add_argument("--quick", action="store_true", help="every eighth picture")
    a = ap.parse_args()
    phrases = conditions.load(a.cache)
    captions = [c["caption"] for c in phrases.cs]
    models = Models(a.models, captions)
    data = Data(a.cache, phrases)
    step = 8 if a.quick else 1
    index = (data.artist >= 0).nonzero()[:, 0][::step]
    result = {}
    by = models.text(["by " + n for n in conditions.ARTISTS])
    who = lambda f, i: ((f @ by.T).argmax(1) == data.artist[i]).float().mean().item()

    # Training artists, clean.  One-colour drawings are drawn in black.
    pixels = pixels_of(models, [on_white(p.numpy()) for p in data.pix[index]])
    result["training artists, clean"], f = score(models, pixels, data.concept[index], captions)
    result["training artists, clean"]["artist_of_9"] = who(f, index)
    s = (f @ models.names.T).argmax(1) == data.concept[index]
    result["by artist, clean top1"] = {n: s[data.artist[index] == k].float().mean().item() for k, n in enumerate(conditions.ARTISTS)}

    # Training artists, augmentation with a seed of its own.
    g = torch.Generator().manual_seed(20240229)
    xs, ats = [], []
    for k in range(0, len(index), 192):
        x, at = data.batch(0, g, 0.8, 0.12, index[k:k + 192])
        xs.append(x)
        ats.append(at)
    at = torch.cat(ats)
    key = "training artists, unseen augmentation"
    result[key], f = score(models, torch.cat(xs), data.concept[index], captions)
    result[key]["artist_of_9"] = who(f, index)
    for j, (name, texts) in {3: ("background_of_12", [f"{n} background" for n in conditions.BG[:12]]),
                             4: ("effect_of_8", ["a clean picture"] + [conditions.EFFECT_MEDIUMS[e][0] for e in conditions.EFFECTS[1:]])}.items():
        y = at[:, j]
        ok = (y >= 0) & (y < len(texts))
        result[key][name] = ((f @ models.text(texts).T).argmax(1) == y)[ok].float().mean().item()

    # The artists never trained on.
    import types
    cs = [types.SimpleNamespace(**c) for c in phrases.cs]
    for s in art.HELD_OUT:
        out = render.render(a.npm, [(0, s)], cs, 256)[::step]
        pixels = pixels_of(models, [on_white(o[0]) for o in out])
        result[f"{s.pkg} (never trained on), clean"], _ = score(models, pixels, torch.tensor([o[1] for o in out]), captions)

    # Texts that are true of nothing, against the right name.
    f = models.image(pixels_of(models, [on_white(p.numpy()) for p in data.pix[index[::7]]]))
    noise = (f @ models.text(conditions.NOISE).T)
    result["unrelated phrases"] = {"phrases": len(conditions.NOISE), "mean cosine": noise.mean().item(), "mean cosine of the right name": (f * models.names[data.concept[index[::7]]]).sum(1).mean().item(),
                                   "an unrelated phrase beats the right name": (noise.max(1).values > (f * models.names[data.concept[index[::7]]]).sum(1)).float().mean().item()}

    # The demo pictures.
    for name, terms in {"croissant": ["a croissant", "a croissant, food", "a croissant, food, bread", "a croissant, food, a blurry picture", "a croissant, sports"],
                        "strawberry": ["a strawberry", "a strawberry, fruit", "a strawberry, fruit, berry", "a strawberry, fruit, a blurry picture", "a strawberry, sports"]}.items():
        path = f"{a.models}/{name}.png"
        if not os.path.exists(path):
            continue
        pixels = pixels_of(models, [Image.open(path).convert("RGB")])
        f = models.image(pixels)
        top = (f @ models.names.T)[0].topk(5)
        c = (f @ models.text(terms).T)[0]
        result[f"{name}.png"] = {"caption": models.captions(pixels)[0], "zero_shot": {captions[i]: v for v, i in zip(top.values.tolist(), top.indices.tolist())},
                                 "cosines": dict(zip(terms, c.tolist()))}
    for w in ("clip", "blip2"):
        if os.path.exists(f"{a.cache}/{w}_training.json"):
            result[f"{w} training"] = json.load(open(f"{a.cache}/{w}_training.json"))
    result["concepts"] = len(captions)
    round_all = lambda v: {k: round_all(x) for k, x in v.items()} if isinstance(v, dict) else round(v, 4) if isinstance(v, float) else v
    result = round_all(result)
    os.makedirs(a.docs, exist_ok=True)
    json.dump(result, open(f"{a.docs}/demo-models.json", "w"), indent=1, ensure_ascii=False)
    print("| pictures | n | top-1 | top-5 | of 10 | of 50 | of 200 | caption | artist |\n|---|---|---|---|---|---|---|---|---|")
    for k, v in result.items():
        if isinstance(v, dict) and "top1" in v:
            print("| " + k + " | " + " | ".join([str(v["n"])] + [f"{100 * v[x]:.1f}" if x in v else "" for x in (
                "top1", "top5", "top1_of_10", "top1_of_50", "top1_of_200", "caption_exact", "artist_of_9")]) + " |")
    print(json.dumps({k: v for k, v in result.items() if not (isinstance(v, dict) and "top1" in v)}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
