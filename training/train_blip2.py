"""Train the small BLIP-2 on the trained CLIP's vision tower.

usage: python train_blip2.py CACHE MODELS --minutes 30 [--clip CACHE/clip_ema.safetensors]
Writes CACHE/blip2_raw.safetensors and CACHE/blip2_ema.safetensors.
"""
import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import blip2_model
import clip_model
import conditions
import parallel
from muon import Muon
from train_clip import Data

BATCH = 192
FROZEN = 0.25        # this part of the time the vision tower stays as CLIP left it


def vision(model, x, drop):
    """The vision tower, on a random part of the patches."""
    v = model.vision_model
    h = v.embeddings(x)
    if drop:
        n = h.shape[1] - 1
        keep = torch.rand(len(h), n).argsort(1)[:, :round(n * (1 - drop))] + 1
        h = torch.cat([h[:, :1], h.gather(1, keep[:, :, None].expand(-1, -1, h.shape[2]))], 1)
    for l in v.encoder.layers:
        y = l.layer_norm1(h)
        B, T, D = y.shape
        heads = l.self_attn.num_heads
        q, k, w = l.self_attn.qkv(y).view(B, T, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        y = clip_model.attend(q, k, w).transpose(1, 2).reshape(B, T, D)
        h = h + l.self_attn.projection(y)
        h = h + l.mlp(l.layer_norm2(h))
    return v.post_layernorm(h)


def queries(model, image_tokens):
    q = model.qformer(query_embeds=model.query_tokens.expand(len(image_tokens), -1, -1), encoder_hidden_states=image_tokens, return_dict=True)
    return q.last_hidden_state


def caption_loss(model, q, ids):
    """ids: [bos, caption, newline, pad ...]"""
    emb = model.language_model.get_input_embeddings()
    x = torch.cat([model.language_projection(q), emb(ids)], 1)
    mask = torch.cat([torch.ones(q.shape[:2], dtype=torch.long), (ids != 1).long()], 1)
    out = model.language_model.model.decoder(inputs_embeds=x, attention_mask=mask, use_cache=False, return_dict=True).last_hidden_state
    logits = model.language_model.lm_head(out[:, q.shape[1]:-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=1)


@torch.no_grad()
def write(model, x, steps=16):
    """Greedy captions (token lists), the whole sequence anew for each token: short and simple."""
    q = model.language_projection(queries(model, vision(model, x, 0)))
    emb, newline = model.language_model.get_input_embeddings(), model.config.text_config.eos_token_id
    ids = torch.full((len(x), 1), 2)
    done = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(steps):
        h = torch.cat([q, emb(ids).to(q.dtype)], 1)
        out = model.language_model.model.decoder(inputs_embeds=h, attention_mask=torch.ones(h.shape[:2], dtype=torch.long), use_cache=False, return_dict=True).last_hidden_state
        nxt = model.language_model.lm_head(out[:, -1]).argmax(-1)
        nxt[done] = 1
        ids = torch.cat([ids, nxt[:, None]], 1)
        done |= nxt == newline
        if done.all():
            break
    return ids[:, 1:]


@torch.no_grad()
def validate(model, data, tok, captions, n=768):
    model.eval()
    g = torch.Generator().manual_seed(987654321)
    named = (data.artist >= 0).nonzero()[:, 0]
    index = named[torch.randperm(len(named), generator=g)[:n]]
    hit = 0
    with torch.autocast("cpu", torch.bfloat16):
        for k in range(0, n, 192):
            x, at = data.batch(192, g, 0.8, 0.1, index[k:k + 192])
            for ids, c in zip(write(model, x).tolist(), at[:, 0].tolist()):
                hit += tok.decode(ids, skip_special_tokens=True).strip() == captions[c]
    model.train()
    return hit / n


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("cache")
    ap.add_argument("models")
    ap.add_argument("--minutes", type=float, default=30)
    ap.add_argument("--clip")
    ap.add_argument("--init", help="go on from these weights, all but the vision tower's")
    ap.add_argument("--procs", type=int, default=2)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    vocab = json.load(open(f"{a.models}/demo-blip2/vocab.json"))
    size = sum(p.numel() for p in blip2_model.build(vocab).parameters()) + (blip2_model.WIDTH + 1) * len(json.load(open(f"{a.cache}/concepts.json")))
    parallel.launch(train, a, a.procs, size, a.minutes)


def train(rank, meeting, a):
    torch.set_num_threads(1)
    n, seed = BATCH // a.procs, a.seed * 100 + rank + 50
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(a.seed)
    phrases = conditions.load(a.cache)
    captions = [c["caption"] for c in phrases.cs]
    data = Data(a.cache, phrases)
    tok = Tokenizer.from_file(f"{a.models}/demo-blip2/tokenizer.json")
    tok.no_padding()
    vocab = json.load(open(f"{a.models}/demo-blip2/vocab.json"))
    enc = [tok.encode(c + "\n").ids for c in captions]
    assert all(e[0] == 2 and e[-1] == vocab["Ċ"] for e in enc)
    ids = torch.full((len(enc), max(map(len, enc))), 1)
    for i, e in enumerate(enc):
        ids[i, :len(e)] = torch.tensor(e)
    clip = clip_model.Clip(len(json.load(open(f"{a.models}/demo-clip/vocab.json"))))
    clip.load_state_dict(load_file(a.clip or f"{a.cache}/clip_ema.safetensors"))
    model = blip2_model.build(vocab).float().train()
    if a.init:
        model.load_state_dict(load_file(a.init), strict=False)
        model.tie_weights()
    blip2_model.take_vision(model, clip, data.batch(192, torch.Generator().manual_seed(5), 0.5)[0])
    head = nn.Linear(blip2_model.WIDTH, len(captions))        # names the concept; thrown away at the end
    tower = {id(p) for p in model.vision_model.parameters()}
    named = list(model.named_parameters())
    is_mat = lambda k, p: p.ndim == 2 and (".layer." in k or ".layers." in k)
    groups = [([p for k, p in named if is_mat(k, p) and id(p) not in tower], 4e-3), ([p for k, p in named if is_mat(k, p) and id(p) in tower], 1.2e-3)]
    muon = Muon([{"params": ps, "lr": lr} for ps, lr in groups], lr=4e-3, weight_decay=0.05)
    rest = [(k, p) for k, p in named if not is_mat(k, p)]
    adam = torch.optim.AdamW([{"params": [p for k, p in rest if id(p) not in tower] + list(head.parameters()), "lr": 1e-3},
                              {"params": [p for k, p in rest if id(p) in tower], "lr": 3e-4}], betas=(0.9, 0.98), weight_decay=0.02)
    opts = [muon, adam]
    base = [[gr["lr"] for gr in o.param_groups] for o in opts]
    params = [p for o in opts for gr in o.param_groups for p in gr["params"]]
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    torch.manual_seed(seed)
    meeting.begin()
    start, step, hist, p, saved = time.time(), 0, [], 0.0, time.time()
    while p < 1:
        f = min(1, p / 0.02) * (0.5 + 0.5 * math.cos(math.pi * p)) + 0.01
        frozen = p < FROZEN
        drop = 0.0 if frozen else 0.4 if p < 0.8 else 0.0
        x, attrs = data.batch(n, g, 0.7 if p < 0.8 else 0.55, 0.12)
        c = attrs[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not frozen):
                v = vision(model, x, drop)
            q = queries(model, v)
            t = ids[c]
            loss_c = caption_loss(model, q, t[:, :int((t != 1).sum(1).max())])
            loss_h = F.cross_entropy(head(q.mean(1)).float(), c)
        (2 * loss_c + 0.5 * loss_h).backward()
        p = meeting.average(rank, params)
        for o, b in zip(opts, base):
            for gr, l in zip(o.param_groups, b):
                gr["lr"] = l * f
            if frozen:
                for gr in (o.param_groups[1],):
                    for w in gr["params"]:
                        w.grad = None
        nn.utils.clip_grad_norm_([w for gr in adam.param_groups for w in gr["params"]], 1.0)
        muon.step(meeting, rank)
        adam.step()
        for o in opts:
            o.zero_grad(set_to_none=True)
        step += 1
        if rank:
            continue
        with torch.no_grad():
            d = min(0.98, step / (step + 10))
            for k, w in model.state_dict().items():
                ema[k].lerp_(w, 1 - d)
        hist.append([loss_c.item(), loss_h.item()])
        if step % 50 == 0:
            m = np.mean(hist[-50:], 0)
            print(f"{time.time() - start:6.0f}s step {step} caption {m[0]:.3f} concept {m[1]:.3f}", flush=True)
        if time.time() - saved > 300:
            saved = time.time()
            print("validation exact %.3f" % validate(model, data, tok, captions, 384), flush=True)
    if rank:
        return
    out = {}
    raw = {k: w.detach().clone() for k, w in model.state_dict().items()}
    for name, w in (("raw", raw), ("ema", ema)):
        save_file({k: x.contiguous() for k, x in w.items() if "lm_head" not in k}, f"{a.cache}/blip2_{name}.safetensors")
        model.load_state_dict(w)
        out[name] = validate(model, data, tok, captions, 1536)
        print(name, "validation exact %.4f" % out[name], flush=True)
    json.dump(dict(steps=step, images=step * BATCH, minutes=a.minutes, validation=out, seed=a.seed), open(f"{a.cache}/blip2_training.json", "w"))


if __name__ == "__main__":
    main()
