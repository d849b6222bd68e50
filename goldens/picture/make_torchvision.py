"""Makes torchvision.json: open_clip's evaluation transform (`image_transform` of 2.20.0) on small pictures.

Needs torch, torchvision and Pillow 10.0.0; see make.py for the rest.
"""

import json
from pathlib import Path

import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from synthetic import synthetic

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def main():
    cases = []
    for resize, crop in [(9, 9), (8, 8), (9, 6), (8, 5), (7, 9), (6, 9), (None, 7), (None, 10)]:
        for width, height in [(5, 7), (8, 8), (13, 9), (31, 20), (20, 37), (11, 64)]:
            kind = "noise" if (width + height) % 2 else "ramp"
            steps = [CenterCrop(crop), ToTensor(), Normalize(mean=MEAN, std=STD)]
            if resize is not None:
                steps.insert(0, Resize(resize, interpolation=InterpolationMode.BICUBIC))
            values = Compose(steps)(Image.fromarray(synthetic(kind, width, height)))
            assert values.shape == (3, crop, crop)
            numbers = [float(f"{value:.9g}") for value in values.flatten().tolist()]
            cases.append({"kind": kind, "width": width, "height": height, "resize": resize, "crop": crop, "values": numbers})
    pins = {"torch": torch.__version__, "torchvision": torchvision.__version__, "Pillow": PIL.__version__}
    rows = ",\n".join("    " + json.dumps(case) for case in cases)
    text = f'{{\n  "pins": {json.dumps(pins)},\n  "cases": [\n{rows}\n  ]\n}}\n'
    (Path(__file__).parent / "torchvision.json").write_text(text)
    print(len(cases), len(text))


if __name__ == "__main__":
    main()
