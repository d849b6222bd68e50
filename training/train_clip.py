"""Train the small CLIP for a number of minutes of CPU time (of each of its processes).

usage: python train_clip.py CACHE MODELS --minutes 70 [--save-every 5]
Writes CACHE/clip_raw.safetensors and CACHE/clip_ema.safetensors as it goes.
"""
import argparse
import collections
import json
import math
import random
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import art
import augment
import clip_model
import conditions
import parallel
from conditions import ATTRS, BG, EFFECTS, STYLES
from muon import Muon

BATCH = 192      # over all processes


class Data:
    def __init__(self, cache, phrases):
        z = np.load(f"{cache}/art.npz")
        names = [c["name"] for c in phrases.cs]
        self.aug = augment.Augment(names)
        # A one-colour drawing cannot show a concept whose name says a colour.
        ok = ~(z["mono"] & self.aug.coloured.numpy()[z["concept"]])
        t = lambda k: torch.tensor(z[k][ok])
        self.pix, self.concept, self.set, self.mono, self.colour = t("pix"), t("concept"), t("set"), t("mono"), t("colour")
        self.artist = torch.where(self.set < len(art.ARTISTS), self.set, -1)
        self.style = torch.tensor([STYLES.index(s.style) for s in art.TRAIN])[self.set]
        # Sampling: the variants of one set share a weight, one-colour artists are harder and weigh more, extras less.
        key = self.concept * 1000 + self.set
        _, inv, n = key.unique(return_inverse=True, return_counts=True)
        w = torch.where(self.artist < 0, 0.12, torch.where(self.mono, 1.6, 1.0)) / n[inv].float() ** 0.8
        per = torch.zeros(len(names)).index_add_(0, self.concept, w)
        self.weight = w / per[self.concept] ** 0.6

    def batch(self, n, g, strength, effects=0.15, index=None):
        i = torch.multinomial(self.weight, n, replacement=False, generator=g) if index is None else index
        x, at = self.aug(self.pix[i], self.concept[i], self.mono[i], self.colour[i], g, strength, effects)
        at["concept"], at["artist"] = self.concept[i], self.artist[i]
        at["style"] = torch.where(at.pop("style_known"), self.style[i], -1)
        return augment.normalise(x), torch.stack([at[a] for a in ATTRS], 1)


class Captions:
    """Random true captions of pictures, and which caption is true of which picture of a batch."""

    def __init__(self, phrases, tokenizer):
        self.p, self.tok = phrases, tokenizer
        n = len(phrases.cs)
        self.sizes = dict(concept=n, artist=len(conditions.ARTISTS), style=len(STYLES), bg=len(BG), effect=len(EFFECTS), colour=12)
        every = [({"concept": {i}}) for i in range(n)]              # phrases 0..n-1: the concept itself
        self.texts = [None] * n + [t for t, _ in phrases.all]
        conds = every + [c for _, c in phrases.all]
        # allow[a][phrase, value]; the last column is "unknown", which excludes nothing
        self.allow = {}
        for a in ATTRS:
            m = torch.ones(len(conds), self.sizes[a] + 1, dtype=torch.bool)
            for k, c in enumerate(conds):
                if a in c:
                    m[k] = False
                    m[k, list(c[a])] = True
                    m[k, -1] = True
            self.allow[a] = m
        self.by_concept = [[] for _ in range(n)]
        self.by_value, self.by_pair = {}, {}
        for k, c in enumerate(conds[n:], n):
            if set(c) == {"concept"}:
                for i in c["concept"]:
                    self.by_concept[i].append(k)
            elif set(c) == {"concept", "colour"}:
                self.by_pair[next(iter(c["concept"])), next(iter(c["colour"]))] = k
            else:
                (a, vs), = c.items()
                for v in vs:
                    self.by_value.setdefault((a, v), []).append(k)

    def true_phrase(self, at, rnd):
        kind = rnd.random()
        concept = at["concept"]
        if kind < 0.45:
            return rnd.choice(self.by_concept[concept])
        if kind < 0.55 and (concept, at["colour"]) in self.by_pair:
            return self.by_pair[concept, at["colour"]]
        a = rnd.choice(["artist", "artist", "style", "style", "bg", "effect", "colour"])
        return rnd.choice(self.by_value.get((a, at[a])) or self.by_concept[concept])

    def false_phrase(self, at, rnd):
        n = len(self.p.cs)
        while True:
            k = rnd.randrange(n, len(self.texts)) if rnd.random() < 0.6 else \
                self.true_phrase(dict(at, concept=rnd.randrange(n), artist=rnd.randrange(self.sizes["artist"]), style=rnd.randrange(4)), rnd)
            if not all(self.allow[a][k, at[a]] for a in ATTRS):
                return k

    def write(self, ks):
        n = len(self.p.cs)
        rnd = random
        return ", ".join(rnd.choice(conditions.TEMPLATES).format(self.p.cs[k]["caption"]) if k < n else self.texts[k] for k in ks)

    def make(self, attrs, rnd):
        """-> per picture a list of phrases: true, one phrase shorter, with the last one wrong."""
        right, shorter, wrong = [], [], []
        for row in attrs.tolist():
            at = dict(zip(ATTRS, row))
            ks = [at["concept"]] if rnd.random() < 0.75 else [self.true_phrase(at, rnd)]
            r = rnd.random()
            for _ in range(0 if r < 0.35 else 1 if r < 0.55 else 2 if r < 0.7 else rnd.randint(3, 5) if r < 0.92 else rnd.randint(6, 10)):
                k = self.true_phrase(at, rnd)
                if k not in ks:
                    ks.append(k)
            right.append(ks)
            shorter.append(ks[:-1])
            wrong.append(ks[:-1] + [self.false_phrase(at, rnd)])
        return right, shorter, wrong

    def match(self, caps, attrs):
        """[captions, pictures]: could the caption be true of the picture?"""
        ok = torch.ones(len(caps), len(attrs), dtype=torch.bool)
        for j, a in enumerate(ATTRS):
            m = torch.stack([self.allow[a][ks].all(0) for ks in caps])
            ok &= m[:, attrs[:, j]]                                # -1 = the last column
        return ok

    def encode(self, texts):
        enc = [e.ids[:76] + [e.ids[-1]] if len(e.ids) > 77 else e.ids for e in self.tok.encode_batch(texts)]
        n = max(map(len, enc))
        return torch.tensor([e + [e[-1]] * (n - len(e)) for e in enc])


def encode_text(model, caps, texts):
    """Text features; in three lots by length, which saves padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    n = len(order)
    lots = [order[: n // 2], order[n // 2: n * 5 // 6], order[n * 5 // 6:]]
    out = torch.cat([model.text(caps.encode([texts[i] for i in lot])) for lot in lots if lot])
    return out[torch.tensor(order).argsort()]


def probe_texts(phrases, rnd):
    """One phrase per value of four attributes, for direct classification."""
    pick = {
        "artist": [rnd.choice(["by ", "inspired by "]) + a for a in conditions.ARTISTS],
        "style": [rnd.choice(conditions.STYLE_MEDIUMS[s] + conditions.STYLE_MOVEMENTS[s]) for s in STYLES],
        "effect": [rnd.choice(["a clean picture", "a sharp picture", "an icon"]) if e == "none" else
                   rnd.choice(conditions.EFFECT_MEDIUMS[e] + conditions.NEGATIVE[e]) for e in EFFECTS],
        "bg": [rnd.choice([f"on a {b} background", f"{b} background"]).replace("a orange", "an orange") if k < 12 else
               {"gradient": "gradient background", "noise": "noisy background"}[b] for k, b in enumerate(BG)],
    }
    return pick


def schedule(p, begin=0.0):
    """progress 0..1 -> learning rate factor, share of dropped patches, augmentation strength"""
    lr = min(1, (p - begin) / 0.01) * (0.5 + 0.5 * math.cos(math.pi * p)) + 0.01
    return lr, (0.5 if p < 0.55 else 0.35 if p < 0.88 else 0.0), (0.3 + 0.9 * p if p < 0.6 else 0.8 if p < 0.85 else 0.55)


@torch.no_grad()
def validate(model, data, caps, n=768):
    """Zero-shot top-1 over all names, training artists under augmentation seeds never trained on."""
    model.eval()
    g = torch.Generator().manual_seed(987654321)
    with torch.autocast("cpu", torch.bfloat16):
        t = model.text(caps.encode([c["caption"] for c in caps.p.cs]))
        hit = top5 = 0
        named = (data.artist >= 0).nonzero()[:, 0]
        index = named[torch.randperm(len(named), generator=g)[:n]]
        for k in range(0, n, 192):
            x, at = data.batch(192, g, 0.8, 0.1, index[k:k + 192])
            s = model.image(x) @ t.T
            hit += (s.argmax(1) == at[:, 0]).sum().item()
            top5 += (s.topk(5, 1).indices == at[:, :1]).any(1).sum().item()
    model.train()
    return hit / n, top5 / n


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("cache")
    ap.add_argument("models")
    ap.add_argument("--minutes", type=float, default=70)
    ap.add_argument("--save-every", type=float, default=5)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--lr", type=float, default=4e-3)
    ap.add_argument("--init", help="go on from these weights ...")
    ap.add_argument("--begin", type=float, default=0.0, help="... at this part of the schedule (0..1)")
    ap.add_argument("--procs", type=int, default=2)
    a = ap.parse_args()
    vocab = len(json.load(open(f"{a.models}/demo-clip/vocab.json")))
    size = sum(p.numel() for p in clip_model.Clip(vocab).parameters()) + len(json.load(open(f"{a.cache}/concepts.json"))) * clip_model.PROJECTION
    parallel.launch(train, a, a.procs, size, a.minutes)


def train(rank, meeting, a):
    torch.set_num_threads(1)
    n = BATCH // a.procs
    seed = a.seed * 100 + rank + round(1000 * a.begin)
    rnd, g = random.Random(seed), torch.Generator().manual_seed(seed)
    random.seed(seed)
    torch.manual_seed(a.seed)                                  # the same first weights everywhere
    phrases = conditions.load(a.cache)
    tok = Tokenizer.from_file(f"{a.models}/demo-clip/tokenizer.json")
    tok.no_padding()
    vocab = tok.get_vocab_size()
    data, caps = Data(a.cache, phrases), Captions(phrases, tok)
    model = clip_model.Clip(vocab)
    if a.init:
        model.load_state_dict(load_file(a.init))
    rank or print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(data.pix)} pictures, {len(phrases.cs)} concepts, {len(phrases.all)} phrases", flush=True)
    proxies = nn.Parameter(torch.randn(len(phrases.cs), clip_model.PROJECTION) * 0.05)   # thrown away at the end
    mat = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    rest = [p for n, p in model.named_parameters() if not (".layers." in n and p.ndim == 2)]
    decay = [p for p in rest if p.ndim >= 2]
    opts = [Muon(mat, a.lr, weight_decay=0.1),
            torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": [p for p in rest if p.ndim < 2] + [proxies], "weight_decay": 0.0}],
                              lr=1.5e-3, betas=(0.9, 0.98))]
    params = [p for o in opts for gr in o.param_groups for p in gr["params"]]
    base = [[gr["lr"] for gr in o.param_groups] for o in opts]
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    n_con = len(phrases.cs)
    if a.init:                                                 # the names are close to their proxies by now
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            proxies.copy_(encode_text(model, caps, [c["caption"] for c in phrases.cs]).float())
    torch.manual_seed(seed)                                    # different dropping of patches
    ring = collections.deque(maxlen=24)
    meeting.begin(a.begin)
    start, saved, step, hist, p = time.time(), time.time(), 0, [], a.begin
    while p < 1:
        f, drop, strength = schedule(p, a.begin)
        # Every second batch is put together from pictures drawn in the last steps.
        if step % 2 and len(ring) >= 4:
            x, attrs = (torch.cat(v) for v in zip(*(
                (b[0][k], b[1][k]) for b, k in ((rnd.choice(ring), torch.randperm(n)[:n // 4]) for _ in range(4)))))
        else:
            x, attrs = data.batch(n, g, strength)
            ring.append((x, attrs))
        right, shorter, wrong = caps.make(attrs, rnd)
        match = caps.match(right, attrs)
        with torch.autocast("cpu", torch.bfloat16):
            im = model.image(x, drop_patches=drop)
            cap = encode_text(model, caps, [caps.write(k) for k in right])
        scale = model.logit_scale.exp().clamp(max=100)
        label = torch.arange(n)
        s = scale * im @ cap.T
        s = s.masked_fill(match.T & ~torch.eye(n, dtype=torch.bool), -1e4)    # true pairs are no negatives
        loss = 0.5 * (F.cross_entropy(s, label) + F.cross_entropy(s.T, label))
        px = F.normalize(proxies, dim=-1)
        s_px = 20 * im @ px.T
        loss_px = F.cross_entropy(s_px, attrs[:, 0])
        one = torch.tensor([i for i, k in enumerate(right) if k[0] == attrs[i, 0] and len(k) <= 3])
        loss_tx = F.cross_entropy(20 * cap[one] @ px.T, attrs[one, 0]) if len(one) else 0.0
        total = loss + 0.8 * loss_px + 0.2 * loss_tx
        acc = (s_px.argmax(1) == attrs[:, 0]).float().mean().item()
        # The other texts cost more than the pictures, so they come every few steps only.
        if step % (4 if p < 0.75 else 2) == 0:
            longer = [i for i in range(n) if len(right[i]) > 1][:n // 5]
            noise = rnd.sample(conditions.NOISE, 12)
            others = 96 if p < 0.75 else n_con
            names = torch.cat([attrs[:, 0], torch.randperm(n_con, generator=g)[:others]]).unique()
            target = torch.searchsorted(names, attrs[:, 0].contiguous())
            probes = probe_texts(phrases, rnd)
            tpl = rnd.choice(conditions.TEMPLATES) if rnd.random() < 0.5 else "{}"
            with torch.autocast("cpu", torch.bfloat16):
                st = encode_text(model, caps, [tpl.format(phrases.cs[i]["caption"]) for i in names.tolist()] + noise
                                 + [t for v in probes.values() for t in v])
                lt = encode_text(model, caps, [caps.write(shorter[i]) for i in longer] + [caps.write(wrong[i]) for i in longer])
            nm, nz, pt = st[:len(names)], st[len(names):len(names) + len(noise)], st[len(names) + len(noise):]
            loss_nm = F.cross_entropy(scale * im @ torch.cat([nm, nz]).T, target, label_smoothing=0.05)
            loss_np = F.cross_entropy(20 * nm @ px.T, names)
            loss_at, o = 0.0, 0
            for k, v in probes.items():
                y = attrs[:, ATTRS.index(k)]
                loss_at = loss_at + F.cross_entropy(scale * im @ pt[o:o + len(v)].T, y, ignore_index=-1)
                o += len(v)
            # Chains: one more true phrase raises the similarity, a wrong one lowers it.
            r = torch.tensor(longer)
            dot = lambda t: (im[r] * t).sum(1)
            sh, wr = lt[:len(longer)], lt[len(longer):]
            loss_rk = F.softplus(0.3 - 20 * (dot(cap[r]) - dot(sh))).mean() + F.softplus(0.3 - 20 * (dot(sh) - dot(wr))).mean()
            total = total + 1.5 * loss_nm + 0.5 * loss_np + 0.3 * loss_at + 0.4 * loss_rk
            hist.append([loss.item(), loss_nm.item(), loss_px.item(), loss_at.item(), loss_rk.item(), acc])
        for o_ in opts:
            o_.zero_grad(set_to_none=True)
        total.backward()
        p = meeting.average(rank, params)
        for o_, b in zip(opts, base):
            for gr, l in zip(o_.param_groups, b):
                gr["lr"] = l * f
        nn.utils.clip_grad_norm_(rest + [proxies], 1.0)
        opts[0].step(meeting, rank)
        opts[1].step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            d = min(0.985, step / (step + 10))
            for k, v in model.state_dict().items() if rank == 0 else ():
                ema[k].lerp_(v, 1 - d)
        step += 1
        if rank:
            continue
        if step % 50 == 0:
            m = np.mean(hist[-20:], 0)
            print(f"{time.time() - start:6.0f}s done {p:.3f} step {step} lr {f:.3f} con {m[0]:.3f} name {m[1]:.3f} proxy {m[2]:.3f} attr {m[3]:.3f} rank {m[4]:.3f} "
                  f"acc {m[5]:.3f} scale {scale.item():.1f}", flush=True)
        if time.time() - saved > a.save_every * 60:
            saved = time.time()
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{a.cache}/clip_raw.safetensors")
            save_file({k: v.contiguous() for k, v in ema.items()}, f"{a.cache}/clip_ema.safetensors")
            print("validation top-1 %.3f top-5 %.3f" % validate(model, data, caps), flush=True)
    if rank:
        return
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{a.cache}/clip_raw.safetensors")
    save_file({k: v.contiguous() for k, v in ema.items()}, f"{a.cache}/clip_ema.safetensors")
    out = {}
    for n, w in (("raw", model.state_dict()), ("ema", ema)):
        model.load_state_dict(w)
        out[n] = validate(model, data, caps, 1920)
        print(n, "validation top-1 %.4f top-5 %.4f" % out[n], flush=True)
    json.dump(dict(steps=step, images=step * BATCH, minutes=a.minutes, validation=out, seed=a.seed), open(f"{a.cache}/clip_training.json", "w"))


if __name__ == "__main__":
    main()
