"""Batch augmentation: from 96 x 96 RGBA drawings to 64 x 64 RGB pictures and their attributes.

Everything works on whole batches.  The background, the effects and the colours are attributes a
caption may mention; warps, outlines and the like only make the shapes harder to memorise.
"""
import math
import re

import torch
import torch.nn.functional as F

import colours
import conditions

OUT = 64
MID = 80           # drawn at this size, then made smaller with antialiasing as Pillow does
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
RGB = torch.tensor(colours.RGB)
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
NO_FLIP = re.compile(r"left|right|button|sign|question|arrow|hundred|ZZZ|NEW|symbol|mark|musical|clock|play|infinity|copyright|1st")
FX = conditions.EFFECTS


def normalise(x):
    return (x - MEAN) / STD


def hue_matrix(angle):
    """Rotation about the grey axis, [B] -> [B, 3, 3]."""
    c, s = torch.cos(angle), torch.sin(angle)
    a, b = (1 - c) / 3, s / math.sqrt(3)
    row = lambda *v: torch.stack(v, -1)
    return torch.stack([row(c + a, a - b, a + b), row(a + b, c + a, a - b), row(a - b, a + b, c + a)], 1)


class Augment:
    def __init__(self, names):
        coloured = [any(re.search(rf"\b{k}\b", n) for k in colours.NAMES) for n in names]
        self.coloured = torch.tensor(coloured)                 # the name says a colour: keep it
        self.flip = torch.tensor([not NO_FLIP.search(n) for n in names])

    def __call__(self, pix, concept, mono, colour, g, strength=1.0, effects=0.15):
        """pix: uint8 [B,96,96,4]; g: torch.Generator.  -> pictures [B,3,64,64] in 0..1, attributes"""
        B = len(pix)
        R = lambda *s: torch.rand(*(s or (B,)), generator=g)
        N = lambda *s: torch.randn(*(s or (B,)), generator=g)
        x = pix.permute(0, 3, 1, 2).float() / 255
        rgb, a = x[:, :3], x[:, 3:]
        colour = colour.clone()
        style_known = torch.ones(B, dtype=torch.bool)
        coloured = self.coloured[concept]
        s = strength * (R() > 0.3).float()                     # a good part is nearly clean

        # The background colour, and for one-colour drawings a colour which stands out from it.
        kind = R()
        plain = kind < 0.76
        grad = (kind >= 0.76) & (kind < 0.9)
        bgc = torch.where(R() < 0.35, torch.zeros(B, dtype=torch.long), torch.randint(0, 12, (B,), generator=g))
        bgc = torch.where(s > 0, bgc, torch.where(R() < 0.7, torch.zeros_like(bgc), bgc))
        pick = torch.randint(0, 12, (B, 6), generator=g)
        far = (RGB[pick] - RGB[bgc][:, None]).pow(2).sum(-1)
        ink = pick.gather(1, far.argmax(1, keepdim=True))[:, 0]
        ink = torch.where((R() < 0.4) & (far.max(1).values > 0) & (bgc != 1), torch.ones_like(ink), ink)
        single = mono | ((R() < 0.03 * s) & ~coloured)         # a silhouette of a colour drawing
        style_known &= ~(single & ~mono)
        inkrgb = (RGB[ink] + 0.06 * N(B, 3)).clamp(0, 1)
        rgb = torch.where(single[:, None, None, None], inkrgb[:, :, None, None], rgb)
        colour = torch.where(single, ink, colour)

        # Colours of the drawing.
        big = (R() < 0.12 * s) & ~coloured & ~single
        angle = torch.where(big, R() * 2 * math.pi, N() * 0.12 * s)
        rgb = torch.einsum("bij,bjhw->bihw", hue_matrix(angle), rgb)
        sat = 1 + (R() * 0.9 - 0.45) * s
        luma = (rgb * LUMA).sum(1, keepdim=True)
        rgb = luma + (rgb - luma) * sat.view(B, 1, 1, 1)
        gain = 1 + N(B, 1) * 0.10 * s[:, None] + N(B, 3) * 0.04 * s[:, None]
        rgb = (rgb * gain.view(B, 3, 1, 1)).clamp(1e-3, 1)
        rgb = rgb ** torch.exp(N() * 0.2 * s).view(B, 1, 1, 1)
        colour = torch.where(big, torch.full_like(colour, -1), colour)

        # Outlines around the shape, and drawings reduced to their edges.
        pick = R()
        ol = ((pick < 0.12 * s) & ~single).nonzero()[:, 0]
        if len(ol):
            k = 3 if torch.rand((), generator=g) < 0.5 else 5
            fat = F.max_pool2d(a[ol], k, 1, k // 2)
            line = torch.where(torch.rand(len(ol), 1, 1, 1, generator=g) < 0.7, torch.tensor(0.08), torch.tensor(0.97))
            rgb[ol] = rgb[ol] * a[ol] + line * (1 - a[ol])
            a = a.index_put((ol,), fat)
            style_known[ol] = False
        ed = ((pick > 1 - 0.05 * s) & ~single & ~coloured).nonzero()[:, 0]
        if len(ed):
            y = torch.cat([(rgb[ed] * LUMA).sum(1, keepdim=True) * a[ed], a[ed]], 1)
            dx = F.pad(y[..., 1:] - y[..., :-1], (0, 1)).abs() + F.pad(y[..., 1:, :] - y[..., :-1, :], (0, 0, 0, 1)).abs()
            edge = F.max_pool2d((dx.amax(1, keepdim=True) * 3).clamp(0, 1), 3, 1, 1)
            rgb[ed] = inkrgb[ed][:, :, None, None].expand(-1, -1, 96, 96)
            a = a.index_put((ed,), edge)
            colour[ed] = ink[ed]
            style_known[ed] = False

        # Shape: scale, aspect, shear, rotation, shift, mirror, elastic warp.
        sc = torch.where(s > 0, 0.58 + R() * 0.47, 0.72 + R() * 0.26)
        asp, shear = torch.exp(N() * 0.10 * s), N() * 0.09 * s
        rot = N() * 0.2 * s
        flip = torch.where((R() < 0.5) & self.flip[concept], -1.0, 1.0)
        c, sn = torch.cos(rot), torch.sin(rot)
        m = torch.stack([torch.stack([c, -sn], 1), torch.stack([sn, c], 1)], 1)
        k = torch.stack([torch.stack([flip * asp, shear], 1), torch.stack([torch.zeros(B), 1 / asp], 1)], 1)
        m = (k @ m) / sc.view(B, 1, 1)
        shift = (R(B, 2) * 2 - 1) * (0.02 + 0.14 * s[:, None])
        grid = F.affine_grid(torch.cat([m, (m @ -shift[:, :, None])], 2), (B, 4, MID, MID), align_corners=False)
        amp = (R() * 0.11 * s * (R() < 0.5).float()).view(B, 1, 1, 1)
        warp = F.interpolate(N(B, 2, 4, 4), (MID, MID), mode="bicubic", align_corners=False) * amp
        grid = grid + warp.permute(0, 2, 3, 1)
        y = F.grid_sample(torch.cat([rgb * a, a], 1), grid, align_corners=False, padding_mode="zeros")

        # Background: plain, gradient or noise.
        col = (RGB[bgc] + 0.05 * N(B, 3)).clamp(0, 1)
        col[(bgc == 0) & plain & (R() < 0.7)] = 1.0
        col2 = R(B, 3)
        ang = R() * 2 * math.pi
        t = torch.linspace(-0.7, 0.7, MID)
        ramp = (0.5 + torch.cos(ang).view(B, 1, 1) * t + torch.sin(ang).view(B, 1, 1) * t[:, None]).clamp(0, 1)[:, None]
        flat = col[:, :, None, None]
        bg = torch.where(grad.view(B, 1, 1, 1), flat + (col2[:, :, None, None] - flat) * ramp, flat.expand(-1, -1, MID, MID))
        rough = (~plain & ~grad).nonzero()[:, 0]
        if len(rough):
            n = len(rough)
            z = sum(F.interpolate(torch.randn(n, 3, q, q, generator=g), (MID, MID), mode="bilinear") * w for q, w in ((4, 0.2), (12, 0.15), (48, 0.1)))
            bg = bg.index_put((rough,), (flat[rough] + z).clamp(0, 1))
        out = y[:, :3] + bg * (1 - y[:, 3:])
        out = F.interpolate(out, (OUT, OUT), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)

        # Named effects.
        fx = torch.where(R() < effects, torch.randint(1, len(FX), (B,), generator=g), torch.zeros(B, dtype=torch.long))
        fx[coloured & ((fx == FX.index("gray")) | (fx == FX.index("sepia")))] = 0
        out = apply_effects(out, fx, g)
        bgv = torch.where(plain, bgc, torch.where(grad, torch.tensor(12), torch.tensor(13)))
        changed = (fx == FX.index("gray")) | (fx == FX.index("sepia")) | (fx == FX.index("dark"))
        bgv = torch.where(changed & plain, torch.full_like(bgv, -1), bgv)
        colour = torch.where(changed, torch.full_like(colour, -1), colour)
        return out, {"bg": bgv, "effect": fx, "colour": colour, "style_known": style_known}


def apply_effects(x, fx, g):
    at = lambda n: (fx == FX.index(n)).nonzero()[:, 0]
    i = at("blurry")
    if len(i):
        y = F.interpolate(x[i], (13, 13), mode="bicubic", antialias=True)
        y2 = F.interpolate(x[i], (22, 22), mode="bicubic", antialias=True)
        up = lambda v: F.interpolate(v, (OUT, OUT), mode="bicubic").clamp(0, 1)
        half = (torch.rand(len(i), 1, 1, 1, generator=g) < 0.4).float()
        x = x.index_put((i,), up(y) * half + up(y2) * (1 - half))
    i = at("gray")
    if len(i):
        x = x.index_put((i,), (x[i] * LUMA).sum(1, keepdim=True).expand(-1, 3, -1, -1))
    i = at("sepia")
    if len(i):
        l = (x[i] * LUMA).sum(1, keepdim=True)
        x = x.index_put((i,), (l * torch.tensor([1.07, 0.86, 0.62]).view(1, 3, 1, 1) + 0.03).clamp(0, 1))
    i = at("pixelated")
    if len(i):
        x = x.index_put((i,), F.interpolate(F.interpolate(x[i], (16, 16), mode="area"), (OUT, OUT), mode="nearest"))
    i = at("grainy")
    if len(i):
        x = x.index_put((i,), (x[i] + 0.16 * torch.randn(len(i), 3, OUT, OUT, generator=g)).clamp(0, 1))
    i = at("dark")
    if len(i):
        x = x.index_put((i,), x[i] * (0.18 + 0.2 * torch.rand(len(i), 1, 1, 1, generator=g)))
    i = at("faded")
    if len(i):
        x = x.index_put((i,), x[i] * 0.35 + 0.45 + 0.15 * torch.rand(len(i), 1, 1, 1, generator=g))
    return x
