"""Decoding and resizing a large photograph: imprompt and Pillow, alternately, on one thread.

Run by scripts/bench-picture with the Python of goldens/setup.
"""

import io
import re
import statistics
import subprocess
import sys
import time

import numpy as np
from PIL import Image, __version__

ROUNDS = 7


def photograph(width, height):
    """A picture whose spectrum falls as a photograph's does, its channels much alike, with the
    grain of a sensor."""
    rng = np.random.default_rng(1)
    down = np.fft.fftfreq(height)[:, None]
    across = np.fft.rfftfreq(width)[None, :]
    fall = 1 / np.maximum(np.hypot(down, across), 1 / width) ** 1.2

    def field():
        spectrum = fall * np.exp(2j * np.pi * rng.random(fall.shape))
        values = np.fft.irfft2(spectrum, s=(height, width))
        return values / values.std()

    shared = field()
    channels = [128 + 45 * shared + 14 * field() + 2 * rng.standard_normal((height, width)) for _ in range(3)]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def pillow(data, rounds):
    """Milliseconds of decoding alone, and of decoding, resizing the short side to 224, cropping."""
    decoded, whole = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        image = Image.open(io.BytesIO(data))
        image.load()
        decoded.append((time.perf_counter() - start) * 1e3)
        width, height = image.size
        size = (224, 224 * height // width) if width <= height else (224 * width // height, 224)
        image = image.resize(size, resample=Image.BICUBIC)
        left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
        image.crop((left, top, left + 224, top + 224))
        whole.append((time.perf_counter() - start) * 1e3)
    return statistics.median(decoded), statistics.median(whole)


def imprompt(binary, path, rounds):
    output = subprocess.run([binary, "--bench", path, str(rounds)], check=True, capture_output=True, text=True).stdout
    medians = dict(re.findall(r"^(decode|both)\s+([\d.]+) ms", output, re.M))
    return float(medians["decode"]), float(medians["both"])


def main():
    binary, folder = sys.argv[1:]
    picture = photograph(2048, 1536)
    for name, options in [
        ("baseline 4:2:0, quality 90", {"format": "JPEG", "quality": 90}),
        ("baseline 4:4:4, quality 90", {"format": "JPEG", "quality": 90, "subsampling": 0}),
        ("progressive 4:2:0, quality 90", {"format": "JPEG", "quality": 90, "progressive": True}),
        ("PNG", {"format": "PNG"}),
    ]:
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        data = buffer.getvalue()
        path = f"{folder}/picture"
        with open(path, "wb") as file:
            file.write(data)
        rounds = 5 if name == "PNG" else 15
        pairs = [(imprompt(binary, path, rounds), pillow(data, rounds)) for _ in range(ROUNDS)]
        ours, theirs = (
            [statistics.median(pair[side][part] for pair in pairs) for part in (0, 1)] for side in (0, 1)
        )
        print(f"2048 x 1536 {name}, {len(data) / 1e6:.2f} MB")
        for part, what in enumerate(["decode", "decode and resize"]):
            print(
                f"  {what:<18} imprompt {ours[part]:7.2f} ms   Pillow {__version__} {theirs[part]:7.2f} ms   "
                f"ratio {theirs[part] / ours[part]:.2f}"
            )


main()
