"""Makes the goldens of crates/picture from the pinned references.

    python3.11 -m venv venv
    venv/bin/pip install Pillow==10.0.0 "numpy<2" requests tqdm regex pyyaml packaging filelock \
        safetensors "huggingface_hub<0.20" "tokenizers<0.14"
    venv/bin/pip install --no-deps transformers==4.33.1
    venv/bin/pip download --no-deps scikit-image==0.22.0 -d wheels
    venv/bin/python goldens/picture/make.py wheels/scikit_image-*.whl
    # with torch and torchvision, for the other crop rule:
    venv/bin/python goldens/picture/make_torchvision.py

Writes files/ (encoded pictures) and picture.json (what the references make of them) next to
this script. scikit-image is only unpacked for its photographs: `astronaut` and `rocket` (NASA,
public domain), `coffee` and `chelsea` (CC0).
"""

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image, ImageOps, features
from transformers import BitImageProcessor, BlipImageProcessor, CLIPImageProcessor

from encoders import bmp, gif, png
from synthetic import synthetic

HERE = Path(__file__).parent
FILES = HERE / "files"
FILTERS = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def resize_cases():
    """(kind, old width, old height, new width, new height, filter number)"""
    sizes = [
        (1, 1, 1, 1), (1, 1, 5, 7), (1, 40, 9, 9), (40, 1, 9, 9), (2, 3, 224, 224), (7, 5, 8, 5),
        (7, 5, 7, 6), (7, 5, 7, 5), (16, 16, 8, 8), (17, 13, 5, 29), (31, 64, 64, 31), (64, 48, 33, 25),
        (100, 75, 32, 24), (101, 77, 37, 28), (224, 224, 384, 384), (255, 3, 32, 32), (3, 255, 32, 32),
        (257, 129, 224, 112), (300, 200, 336, 224), (333, 250, 298, 224), (451, 300, 336, 224),
        (512, 512, 224, 224), (640, 427, 335, 224), (640, 480, 384, 384), (1000, 10, 50, 3), (5, 2000, 3, 224),
    ]
    for index, (width, height, new_width, new_height) in enumerate(sizes):
        for kind in ["noise", "ramp", "blocks"]:
            for number in range(6):
                yield kind, width, height, new_width, new_height, number


def make_resize():
    cases = []
    for kind, width, height, new_width, new_height, number in resize_cases():
        image = Image.fromarray(synthetic(kind, width, height))
        result = image.resize((new_width, new_height), resample=number)
        cases.append({
            "kind": kind, "width": width, "height": height, "new_width": new_width,
            "new_height": new_height, "filter": FILTERS[number], "sha256": digest(np.array(result)),
        })
    return cases


PROCESSORS = {
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "clip_old": {
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224,
    },
    "clip_336": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336}, "rescale_factor": 0.00392156862745098, "do_convert_rgb": True,
    },
    "clip_crop_smaller": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 33}, "resample": 2,
        "crop_size": {"height": 30, "width": 25}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    },
    "clip_crop_larger": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20}, "crop_size": 26,
    },
    "clip_no_resize": {
        "image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": {"height": 24, "width": 32},
    },
    "clip_no_normalize": {
        "image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 40, "do_normalize": False,
        "resample": 1,
    },
    "bit": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 64}, "crop_size": 60},
    "blip": {
        "image_processor_type": "BlipImageProcessor", "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "processor_class": "Blip2Processor", "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
    },
    "blip_default": {"image_processor_type": "BlipImageProcessor"},
    "blip_int": {"image_processor_type": "BlipImageProcessor", "size": 100},
}


def make_preprocess():
    classes = {
        "CLIPImageProcessor": CLIPImageProcessor, "CLIPFeatureExtractor": CLIPImageProcessor,
        "BitImageProcessor": BitImageProcessor, "BlipImageProcessor": BlipImageProcessor,
    }
    # No side of 1 or 3: transformers takes it for the channels.
    sizes = [(64, 48), (47, 64), (101, 77), (224, 224), (333, 250), (299, 451), (512, 512), (400, 5), (5, 400), (37, 38)]
    cases = []
    for name, config in PROCESSORS.items():
        kind = config.get("image_processor_type") or config["feature_extractor_type"]
        processor = classes[kind](**config)
        for width, height in sizes:
            image = Image.fromarray(synthetic("ramp" if width % 2 else "noise", width, height))
            values = processor(image)["pixel_values"][0]
            assert values.dtype == np.float32, (name, values.dtype)
            if values.shape[1:] != expected_shape(config, name):
                # The odd-difference padding of center_crop: one short, no model takes it.
                continue
            cases.append({
                "config": name, "kind": "ramp" if width % 2 else "noise", "width": width, "height": height,
                "shape": list(values.shape), "sha256": digest(values.astype("<f4")),
            })
    return cases


def expected_shape(config, name):
    if name == "blip":
        return (224, 224)
    if name.startswith("blip"):
        return (384, 384) if name == "blip_default" else (100, 100)
    crop = config.get("crop_size", 224)
    return (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])


def photographs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for name in ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"]:
            with archive.open(f"skimage/data/{name}") as file:
                yield name.split(".")[0], Image.open(io.BytesIO(file.read())).convert("RGB")


def save(image, name, **options):
    image.save(FILES / name, **options)


def make_jpeg(photos):
    small = photos["astronaut"].resize((97, 61), resample=Image.BICUBIC)
    for name in ["coffee", "chelsea", "rocket"]:
        save(photos[name].resize((213, 142), resample=Image.BICUBIC), f"{name}.jpg", quality=85)
    save(small, "q30.jpg", quality=30)
    save(small, "q95_444.jpg", quality=95, subsampling=0)
    save(small, "q85_422.jpg", quality=85, subsampling=1)
    save(small, "q85_420.jpg", quality=85, subsampling=2)
    save(small, "progressive.jpg", quality=85, progressive=True)
    save(small, "progressive_444.jpg", quality=85, progressive=True, subsampling=0)
    save(small.convert("L"), "gray.jpg", quality=85)
    save(small.convert("L"), "gray_progressive.jpg", quality=85, progressive=True)
    save(small.convert("CMYK"), "cmyk.jpg", quality=90)
    data = (FILES / "cmyk.jpg").read_bytes()
    adobe = data.index(b"Adobe")
    (FILES / "ycck.jpg").write_bytes(data[: adobe + 11] + b"\x02" + data[adobe + 12 :])
    # The same components without JFIF, under an Adobe marker that says RGB.
    data = (FILES / "q95_444.jpg").read_bytes()
    assert data[2:4] == b"\xff\xe0"
    rest = data[4 + int.from_bytes(data[4:6], "big") :]
    (FILES / "adobe_rgb.jpg").write_bytes(b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\x00" + rest)
    (FILES / "adobe_ycc.jpg").write_bytes(b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\x01" + rest)
    (FILES / "bare.jpg").write_bytes(b"\xff\xd8" + rest)
    save(small, "icc_p3.jpg", quality=85, icc_profile=display_p3())
    save(small, "icc_corrupt.jpg", quality=85, icc_profile=b"\x00\x01no profile at all")
    tiny = small.resize((24, 16))
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(tiny, f"orientation_{orientation}.jpg", quality=95, subsampling=0, exif=exif)
    data = (FILES / "orientation_6.jpg").read_bytes()
    exif = data.index(b"Exif\0\0")
    broken = data[: exif + 6] + b"XX" + data[exif + 8 :]
    (FILES / "exif_broken.jpg").write_bytes(broken)
    (FILES / "restarts.jpg").write_bytes(with_restarts(photos["chelsea"].resize((90, 128))))
    # The same number of blocks in units of another shape: the picture is scrambled, and as valid.
    square = photos["coffee"].resize((64, 64))
    for name, written, factors in [("440", 1, 0x12), ("411", 2, 0x41), ("114", 2, 0x14)]:
        stream = io.BytesIO()
        square.save(stream, "JPEG", quality=80, subsampling=written)
        data = bytearray(stream.getvalue())
        data[data.index(b"\xff\xc0") + 11] = factors
        (FILES / f"sampling_{name}.jpg").write_bytes(data)
    for width, height in [(1, 1), (2, 3), (3, 2), (4, 5), (5, 4), (8, 8), (9, 17), (16, 15), (17, 33)]:
        for subsampling in [1, 2]:
            picture = photos["coffee"].resize((width, height))
            save(picture, f"size_{width}x{height}_{subsampling}.jpg", quality=90, subsampling=subsampling)
    save(tiny, "exif_64k.jpg", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 65400)


def with_restarts(image):
    """Strips of one row of units, each coded alone, joined by restart markers: each starts anew."""
    strips = []
    for top in range(0, image.height, 16):
        stream = io.BytesIO()
        image.crop((0, top, image.width, top + 16)).save(stream, "JPEG", quality=85)
        strips.append(stream.getvalue())
    frame, scan = strips[0].index(b"\xff\xc0"), strips[0].index(b"\xff\xda")
    data = scan + 2 + int.from_bytes(strips[0][scan + 2 : scan + 4], "big")
    head = bytearray(strips[0][:data])
    head[frame + 5 : frame + 7] = image.height.to_bytes(2, "big")
    units = -(-image.width // 16)
    out = head[:scan] + b"\xff\xdd\x00\x04" + units.to_bytes(2, "big") + head[scan:]
    for number, strip in enumerate(strips):
        if number:
            out += bytes([0xFF, 0xD0 + (number - 1) % 8])
        out += strip[data:-2]
    return bytes(out) + b"\xff\xd9"


def display_p3():
    """A minimal matrix profile header; no decoder here reads further."""
    body = b"\0\0\0\0lcms\x04\0\0\0mntrRGB XYZ ".ljust(128, b"\0") + b"\0\0\0\0"
    return len(body).to_bytes(4, "big") + body[4:]


def make_png(photos):
    photo = np.array(photos["chelsea"].resize((45, 29), resample=Image.BICUBIC))
    gray = photo[:, :, 1]
    alpha = synthetic("ramp", 45, 29)[:, :, 0]
    wide = (photo.astype(np.uint16) << 8) | synthetic("noise", 45, 29)
    wide_gray = synthetic("noise", 45, 29)[:, :, 0].astype(np.uint16) * 3
    for interlaced in [False, True]:
        suffix = "_interlaced.png" if interlaced else ".png"
        for depth in [1, 2, 4, 8]:
            samples = gray >> (8 - depth)
            write(f"gray{depth}{suffix}", png(samples, 0, depth, interlaced))
            palette = synthetic("noise", 1 << depth, 1).tobytes()
            write(f"palette{depth}{suffix}", png(samples, 3, depth, interlaced, [(b"PLTE", palette)]))
        write(f"gray16{suffix}", png(wide_gray, 0, 16, interlaced))
        write(f"rgb{suffix}", png(photo, 2, 8, interlaced))
        write(f"rgb16{suffix}", png(wide, 2, 16, interlaced))
        write(f"gray_alpha{suffix}", png(np.dstack([gray, alpha]), 4, 8, interlaced))
        write(f"gray_alpha16{suffix}", png(np.dstack([wide[:, :, 0], wide[:, :, 1]]), 4, 16, interlaced))
        write(f"rgba{suffix}", png(np.dstack([photo, alpha]), 6, 8, interlaced))
        write(f"rgba16{suffix}", png(np.dstack([wide, wide[:, :, :1]]), 6, 16, interlaced))
    palette = synthetic("noise", 100, 1).tobytes()
    write("palette_short.png", png(gray, 3, 8, False, [(b"PLTE", palette)]))
    transparency = bytes(range(0, 200, 2))
    write("palette_trns.png", png(gray % 100, 3, 8, False, [(b"PLTE", palette), (b"tRNS", transparency)]))
    write("gray_trns.png", png(gray, 0, 8, False, [(b"tRNS", b"\0\x64")]))
    write("gray1_trns.png", png(gray >> 7, 0, 1, False, [(b"tRNS", b"\0\x01")]))
    write("rgb_trns.png", png(photo, 2, 8, False, [(b"tRNS", b"\0\x64\0\x64\0\x64")]))
    image = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(image, "orientation_6.png", exif=exif)
    save(image, "icc_corrupt.png", icc_profile=b"no profile")
    others = [Image.fromarray(synthetic("noise", 45, 29)), image.rotate(180)]
    save(image, "animated.png", save_all=True, append_images=others)
    save(image, "animated_default.png", save_all=True, append_images=others, default_image=True)
    save(photos["astronaut"].resize((160, 160), resample=Image.BICUBIC), "astronaut.png")
    for width, height in [(1, 1), (1, 4000), (4000, 1)]:
        save(Image.fromarray(synthetic("ramp", width, height)), f"{width}x{height}.png")


def make_gif(photos):
    photo = photos["coffee"].resize((45, 29), resample=Image.BICUBIC)
    save(photo.quantize(64), "photo.gif")
    save(photo.convert("L"), "gray.gif")
    save(photo.quantize(64), "interlaced.gif", interlace=1)
    save(photo.quantize(200), "transparent.gif", transparency=3)
    save(photo.quantize(64), "animated.gif", save_all=True, append_images=[photo.rotate(180).quantize(64)])
    indices = synthetic("noise", 12, 9)[:, :, 0] % 32
    palette = synthetic("noise", 32, 1).tobytes()
    write("small_frame.gif", gif((20, 15), palette, [(4, 3, indices, None, None)]))
    write("small_frame_transparent.gif", gif((20, 15), palette, [(4, 3, indices, None, 5)]))
    write("local_palette.gif", gif((12, 9), palette, [(0, 0, indices, palette[::-1], None)]))
    write("large_frame.gif", gif((6, 5), palette, [(2, 1, indices, None, None)]))
    write("short_palette.gif", gif((12, 9), palette, [(0, 0, indices * 7, None, None)]))


def make_bmp(photos):
    photo = photos["rocket"].resize((45, 29), resample=Image.BICUBIC)
    save(photo, "rgb.bmp")
    save(photo.convert("L"), "gray.bmp")
    save(photo.convert("1"), "bits.bmp")
    save(photo.quantize(200), "palette8.bmp")
    alpha = photo.copy()
    alpha.putalpha(Image.fromarray(synthetic("ramp", 45, 29)[:, :, 0]))
    save(alpha, "rgba.bmp")
    indices = synthetic("noise", 13, 9)[:, :, 0] % 16
    palette = synthetic("noise", 16, 1).tobytes()
    for kind in ["palette1", "palette4", "rle8", "rle4", "rgb555", "rgb565", "top_down", "core", "rgb32"]:
        write(f"{kind}.bmp", bmp(kind, indices, palette, synthetic("noise", 13, 9)))


def make_webp(photos):
    photo = photos["coffee"].resize((161, 107), resample=Image.BICUBIC)
    small = photo.resize((45, 29))
    alpha = photo.copy()
    alpha.putalpha(Image.fromarray(synthetic("ramp", 161, 107)[:, :, 0]))
    save(photo, "lossy.webp", quality=80)
    save(photo, "lossy_q20.webp", quality=20)
    save(small, "lossless.webp", lossless=True)
    save(alpha, "lossy_alpha.webp", quality=80)
    save(alpha.resize((45, 29)), "lossless_alpha.webp", lossless=True, exact=True)
    exif = Image.Exif()
    exif[0x0112] = 8
    save(small, "orientation_8.webp", quality=80, exif=exif)
    others = [small.rotate(180), small]
    save(small, "animated.webp", save_all=True, append_images=others, duration=50)
    save(alpha.resize((45, 29)), "animated_alpha.webp", save_all=True, append_images=others, duration=50)
    save(small, "animated_lossless.webp", save_all=True, append_images=others, lossless=True)
    write("animated_offset.webp", offset_animation((FILES / "lossless.webp").read_bytes()))


def offset_animation(still):
    """An animation whose first frame covers a part of the canvas."""
    chunk = still[12:]
    def wrap(name, data):
        return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
    header = bytes([0x02, 0, 0, 0]) + (59).to_bytes(3, "little") + (39).to_bytes(3, "little")
    frame = (3).to_bytes(3, "little") + (2).to_bytes(3, "little") + (44).to_bytes(3, "little")
    frame += (28).to_bytes(3, "little") + (10).to_bytes(3, "little") + b"\x02" + chunk
    body = b"WEBP" + wrap(b"VP8X", header) + wrap(b"ANIM", b"\xff\0\0\xff\0\0") + wrap(b"ANMF", frame) * 2
    return wrap(b"RIFF", body)


def write(name, data):
    (FILES / name).write_bytes(data)


def make_decode():
    """What Pillow makes of each file, upright."""
    cases = []
    for path in sorted(FILES.iterdir()):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        cases.append({
            "file": path.name, "width": image.width, "height": image.height, "sha256": digest(np.array(image)),
        })
    return cases


def main():
    FILES.mkdir(exist_ok=True)
    for path in FILES.iterdir():
        path.unlink()
    photos = dict(photographs(sys.argv[1]))
    for make in [make_jpeg, make_png, make_gif, make_bmp, make_webp]:
        make(photos)
    golden = {
        "pins": {
            "Pillow": PIL.__version__, "numpy": np.__version__, "transformers": transformers.__version__,
            "libjpeg-turbo": features.version_feature("libjpeg_turbo"), "webp": features.version_module("webp"),
            "zlib": features.version_codec("zlib"),
        },
        "processors": PROCESSORS,
        "decode": make_decode(),
        "resize": make_resize(),
        "preprocess": make_preprocess(),
    }
    lines = []
    for key, value in golden.items():
        if isinstance(value, list):
            rows = ",\n".join("    " + json.dumps(row) for row in value)
            lines.append(f'  "{key}": [\n{rows}\n  ]')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}')
    (HERE / "picture.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print({key: len(value) for key, value in golden.items()})


if __name__ == "__main__":
    main()
