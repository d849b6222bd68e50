"""Draw the demo picture: the croissant of noto-v1, an artist the models never saw.

usage: python demo_picture.py NPM OUT.png [PACKAGE] [ICON]
"""
import sys

import numpy as np
from PIL import Image

import render

npm, out = sys.argv[1:3]
pkg, icon = (sys.argv[3:] + ["noto-v1", "croissant"])[:2] if len(sys.argv) > 4 else ("noto-v1", "croissant")
size, share = 512, 0.82
k = round(size * share)
rgba = render.picture(render.Icons(npm, pkg).svg(icon), k)
im = Image.new("RGBA", (size, size), "white")
im.alpha_composite(Image.fromarray(np.ascontiguousarray(rgba)), ((size - k) // 2, (size - k) // 2))
im.convert("RGB").save(out, optimize=True)
