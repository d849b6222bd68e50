"""Makes the goldens of open_clip's hub folders: small models with random weights
and real architecture, and what open_clip 2.20.0 computes with them.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/open_clip/make.py

Writes goldens/open_clip/NAME/ (open_clip_config.json, open_clip_model.safetensors),
goldens/open_clip/NAME.safetensors (as goldens/clip/make.py, and its pictures), and
goldens/open_clip/zero_shot.json: labels of one picture by the model `words`, whose
tokenizer is that of models/demo-clip, through open_clip's own image transform.
"""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from clip.make import PICTURES, fill  # noqa: E402
from open_clip.model import CLIP, CustomTextCLIP  # noqa: E402
from open_clip.transform import image_transform  # noqa: E402

PICTURE = "goldens/demo/photograph-chelsea.png"
LABELS = ["a cat", "a red apple", "two dogs on the beach", "croissant", "rocket"]

# Every case differs from the others in several ways that change the result.
CASES = {
    # As laion's: gelu, nothing said of it.
    "gelu": {
        "model_cfg": {
            "embed_dim": 40,
            "vision_cfg": {"image_size": 42, "layers": 2, "width": 48, "head_width": 16, "patch_size": 14},
            "text_cfg": {"context_length": 77, "vocab_size": 400, "width": 48, "heads": 3, "layers": 2},
        },
        "dtype": torch.float32,
    },
    # As OpenAI's in open_clip's form: quick_gelu; as bigG's: a ratio that gives no whole number
    # of columns, and a width that the heads do not fill.
    "quick_gelu_f16": {
        "model_cfg": {
            "embed_dim": 72,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 31, "layers": 1, "width": 80, "head_width": 32, "patch_size": 7, "mlp_ratio": 4.3637},
            "text_cfg": {"context_length": 12, "vocab_size": 320, "width": 48, "heads": 2, "layers": 2},
        },
        "dtype": torch.float16,
    },
    # The text tower apart, a real tokenizer, means and a transform of its own.
    "words": {
        "model_cfg": {
            "embed_dim": 24,
            "custom_text": True,
            "quick_gelu": False,
            "vision_cfg": {"image_size": [32, 32], "layers": 2, "width": 40, "head_width": 8, "patch_size": 8, "mlp_ratio": 1.5},
            "text_cfg": {"context_length": 77, "vocab_size": 3072, "width": 32, "heads": 4, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.25, 0.2]},
        "dtype": torch.bfloat16,
    },
}


def rows(config, seed):
    """Padded token rows: short, long, cut, without an end, twice the same."""
    generator = torch.Generator().manual_seed(seed)
    length, vocabulary = config["context_length"], config["vocab_size"]
    start, end = vocabulary - 2, vocabulary - 1

    def words(n):
        return torch.randint(1, vocabulary - 2, (n,), generator=generator).tolist()

    made = []
    for n in (2, 3, 4, 4, 7, 7, length - 1, length):
        n = min(n, length)
        made.append([start, *words(n - 2), end] + [0] * (length - n))
    made.append(list(made[-3]))
    made.append([start, 9, end, 10, end, 11] + [12] * (length - 6))
    made.append([start, *range(8, 8 + length - 1)])
    shared = words(5)
    for n in (1, 1, 2, 3, 3, 4):
        made.append([start, *shared, *words(n), end] + [0] * (length - n - 7))
    return torch.tensor(made)


def pictures(size):
    values = [((7919 * k + 131 * i) % 4096) / 1024 - 2 for i in range(PICTURES) for k in range(3 * size**2)]
    return torch.tensor(values, dtype=torch.float32).reshape(PICTURES, 3, size, size)


def zero_shot(model, case):
    """The labels' probabilities for PICTURE, and the pixels' mean as a check."""
    from transformers import CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(ROOT / "models/demo-clip")
    ids = tokenizer(LABELS, padding="max_length", max_length=77).input_ids
    # open_clip pads with 0; only the first end token counts.
    end = tokenizer.eos_token_id
    ids = [row[: row.index(end) + 1] + [0] * (76 - row.index(end)) for row in ids]
    preprocess = image_transform(model.visual.image_size, is_train=False, **case["preprocess_cfg"])
    pixels = preprocess(Image.open(ROOT / PICTURE)).unsqueeze(0)
    with torch.no_grad():
        image, text, scale = model(pixels, torch.tensor(ids))
    cosines = (image @ text.T)[0]
    return {
        "picture": PICTURE,
        "labels": LABELS,
        "similarity": cosines.tolist(),
        "probability": (scale * cosines).softmax(-1).tolist(),
        "pixel_values": pixels.flatten()[::97].tolist(),
    }


def make(name, case, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = dict(case["model_cfg"])
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    model = kind(**config).eval()
    fill(model, seed)
    model.to(case["dtype"])
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    written = {"model_cfg": case["model_cfg"], "preprocess_cfg": case.get("preprocess_cfg", {})}
    (folder / "open_clip_config.json").write_text(json.dumps(written, indent=2) + "\n")

    model = model.float()
    size = model.visual.image_size[0] if isinstance(model.visual.image_size, (tuple, list)) else model.visual.image_size
    input_ids = rows(config["text_cfg"], seed)
    with torch.no_grad():
        image, text, scale = model(pictures(size), input_ids)
    tensors = {"input_ids": input_ids, "text_embeds": text, "image_embeds": image, "logit_scale": scale.reshape(1)}
    pins = {"torch": torch.__version__, "open_clip": version("open_clip_torch")}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, HERE / f"{name}.safetensors", pins)
    print(f"{name}: {len(input_ids)} texts, spread {text.std(dim=0).mean():.3f} {image.std(dim=0).mean():.3f}")
    if "preprocess_cfg" in case:
        (HERE / "zero_shot.json").write_text(json.dumps(zero_shot(model, case)) + "\n")


if __name__ == "__main__":
    for number, (name, case) in enumerate(CASES.items()):
        make(name, case, number + 1)
