"""Colour names: for backgrounds, for one-colour drawings and for the main colour of a picture."""
import numpy as np

NAMES = ["white", "black", "gray", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown"]
RGB = np.array([[255, 255, 255], [16, 16, 20], [135, 138, 142], [222, 52, 46], [244, 144, 34], [250, 214, 60],
                [70, 170, 70], [40, 170, 165], [58, 118, 214], [140, 80, 190], [244, 138, 184], [132, 86, 54]], np.float32) / 255
# Which colour a pixel has is decided in a space where brightness counts less than hue.
_W = np.array([[0.299, 0.587, 0.114], [0.6, -0.6, 0.0], [0.3, 0.3, -0.6]], np.float32) * np.array([[0.8], [1.4], [1.4]], np.float32)


def nearest(rgb):
    """rgb: [..., 3] in 0..1 -> colour number."""
    d = ((rgb @ _W.T)[..., None, :] - RGB @ _W.T) ** 2
    return d.sum(-1).argmin(-1)


def main_colour(rgba):
    """The colour which covers at least 45 % of a drawing, or -1."""
    px = rgba[rgba[..., 3] > 200][:, :3].astype(np.float32) / 255
    if len(px) < 50:
        return -1
    n = np.bincount(nearest(px), minlength=len(NAMES))
    return int(n.argmax()) if n.max() > 0.45 * len(px) else -1
