"""A CLIP stand-in whose arithmetic is exact, so that another language can repeat it bit for bit.

A text is cut into tokens; each token id has a vector of small integers; the weighted sum of the
vectors is projected, two dimensions at a time, onto the integer points of a circle.  The squared
radii add up to 2**20, so an embedding divided by 1024 has the length 1 without rounding, is exact
in float16, and a dot product of two is a multiple of 2**-20: exact in float32 in whatever order it
is summed.  Similarities therefore tie only where the token ids are equal.

The Rust twin is crates/interrogate/tests/support/mod.rs.
"""
import math

import numpy as np
import torch

CONTEXT = 77
PIECES = 3000               # ids 1..=PIECES; 0 is the padding
START, END = 3001, 3002     # the end token has the highest id
MASK = (1 << 64) - 1
# Squared radii of the 32 circles: each has at least 24 integer points.
RADII = [24650, 29725, 44785, 34450, 22525, 22100, 21125, 32045, 44525, 37825, 36725, 41905, 40885,
         44225, 38425, 27625, 32825, 31025, 23725, 26650, 45305, 37700, 31525, 31265, 28730, 36125,
         24505, 35425, 26825, 39650, 23426, 30325]
assert sum(RADII) == 1 << 20
DIMENSION = 2 * len(RADII)
SCALE = 1024.0


def circle(squared):
    """The integer points of a circle, in order."""
    radius = math.isqrt(squared)
    points = []
    for x in range(-radius, radius + 1):
        y = math.isqrt(squared - x * x)
        if x * x + y * y == squared:
            points += [(x, -y), (x, y)] if y else [(x, 0)]
    return points


def mix(value):
    """splitmix64."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def fnv(piece):
    value = 0xCBF29CE484222325
    for byte in piece.encode():
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def element(key, index):
    """An integer in -127..=127."""
    return mix(key * DIMENSION + index) % 255 - 127


VECTORS = np.array([[element(token, i) for i in range(DIMENSION)] for token in range(END + 1)], np.int64)
BIAS = np.array([element(1_000_003, i) for i in range(DIMENSION)], np.int64)
POINTS = [np.array(circle(n), np.int64) for n in RADII]


def pieces(text):
    """Lower-case words cut into pieces of at most five letters; any other sign alone."""
    out, word = [], ""
    for sign in text.lower() + " ":
        if sign.isascii() and sign.isalnum():
            word += sign
            continue
        out += [word[i:i + 5] for i in range(0, len(word), 5)]
        word = ""
        if not sign.isspace():
            out.append(sign)
    return out


def token_ids(text):
    return [1 + fnv(piece) % PIECES for piece in pieces(text)]


_cache = {}


def tokenize(texts):
    """As open_clip.SimpleTokenizer pads and cuts: int64 [n, 77]."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    result = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
    for i, text in enumerate(texts):
        ids = [START] + token_ids(str(text)) + [END]
        if len(ids) > CONTEXT:
            ids = ids[:CONTEXT]
            ids[-1] = END
        result[i, :len(ids)] = torch.tensor(ids)
    return result


def project(sums):
    """int64 [n, 64] sums to int64 [n, 64] points: in each circle the point furthest along the
    sum, the first of equal ones."""
    out = np.empty_like(sums)
    for i, points in enumerate(POINTS):
        pair = sums[:, 2 * i:2 * i + 2].astype(np.float64)  # small integers: exact
        out[:, 2 * i:2 * i + 2] = points[np.argmax(pair @ points.T.astype(np.float64), axis=1)]
    return out


def weight(position):
    return 5 - position % 3


class FakeClip:
    """`bias` moves every text towards one direction, as the cone of real CLIP embeddings does."""

    def __init__(self, bias):
        self.bias = bias

    def to(self, device):
        return self

    def eval(self):
        return self

    def sums(self, tokens):
        tokens = tokens.numpy()
        ends = tokens.argmax(axis=1) if len(tokens) else np.zeros(0, np.int64)
        sums = np.zeros((len(tokens), DIMENSION), np.int64)
        for position in range(int(ends.max()) + 1 if len(tokens) else 0):
            used = (position <= ends)[:, None]
            sums += np.where(used, weight(position) * (VECTORS[tokens[:, position]] + self.bias * BIAS), 0)
        return sums

    def encode_text(self, tokens):
        return torch.from_numpy((project(self.sums(tokens)) / SCALE).astype(np.float32))

    def encode_image(self, images):
        return images


def image_points(clip, texts, noise, seed):
    """An "image": what lies between some texts, with noise.  int64 [64]."""
    sums = np.zeros(DIMENSION, np.int64)
    for text in texts:
        sums += clip.sums(tokenize([text]))[0]
    sums += noise * np.array([element(2_000_000 + seed, i) for i in range(DIMENSION)], np.int64)
    return project(sums[None])[0]
