"""Makes the goldens of SigLIP in open_clip's form, whose image tower is timm's: small models with
random weights and real architecture, and what open_clip 3.3.0 with timm 1.0.31 computes with them.

    goldens/setup && .imprompt/goldens-venv-siglip/bin/python goldens/open_clip/make_siglip.py

Writes goldens/open_clip/NAME/ (open_clip_config.json, open_clip_model.safetensors, tokenizer),
goldens/open_clip/NAME.safetensors (as goldens/siglip/make.py) and, for those with a tokenizer,
goldens/open_clip/NAME.json (labels of one picture through open_clip's own transform and tokenizer);
goldens/open_clip/tokens-t5.jsonl: strings as open_clip's HFTokenizer with `clean: canonicalize` and
a T5 tokenizer reads them, padded to 16 slots.

timm builds the image tower by its name, with the true sizes. Here `create_model` is given smaller ones
of width and depth; heads, patch, picture, activation, pooling and the order of all parts are the name's.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import open_clip
import timm
import torch
import transformers
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from transformers import T5TokenizerFast

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from clip.make import PICTURES, fill  # noqa: E402
from siglip.make import LABELS, PICTURE, gemma, spiece, texts  # noqa: E402

SLOTS = 16
PINS = {"torch": torch.__version__, "open_clip": open_clip.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
# What cleaning changes: `_`, references, damaged text, capitals beyond ASCII.
CLEANED = LABELS + ["a_red_apple", "caf&eacute; &amp;amp; cro\u00eessant", "l\u00e2\u20ac\u2122\u00e9t\u00e9", "\u0130STANBUL \u03a3\u0391\u03a3"]

TEXT = {"tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
TANH = {"act_kwargs": {"approximate": "tanh"}}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}

CASES = {
    # As timm/ViT-B-16-SigLIP: exact GELU in both towers, a T5 tokenizer with more ids than the model.
    "siglip": {
        "name": "vit_base_patch16_siglip_224", "size": 224, "trunk": {"embed_dim": 24, "depth": 2},
        "text": {"context_length": 64, "vocab_size": 600, "width": 20, "heads": 4, "layers": 2},
        "dtype": torch.float32, "tokenizer": "t5",
    },
    # As timm/ViT-B-32-SigLIP2-256: tanh in both, Gemma's tokenizer.
    "siglip2": {
        "name": "vit_base_patch32_siglip_256", "size": 256, "trunk": {"embed_dim": 24, "depth": 1},
        "text": {"context_length": 64, "vocab_size": 700, "width": 24, "heads": 3, "layers": 1, **TANH},
        "dtype": torch.bfloat16, "tokenizer": "gemma",
    },
    # As timm/ViT-SO400M-16-SigLIP-i18n-256: no last matrix, tanh in the image tower alone, a ratio
    # that gives no whole number of columns.
    "siglip_i18n": {
        "name": "vit_so400m_patch16_siglip_256", "size": 256, "trunk": {"embed_dim": 32, "depth": 2},
        "text": {"context_length": 16, "vocab_size": 90, "width": 32, "heads": 4, "layers": 3, "mlp_ratio": 3.7362, "proj_type": "none", "proj_bias": False},
        "dtype": torch.float16,
    },
    # As timm/ViT-SO400M-14-SigLIP-384: a picture that is no multiple of its patch; another epsilon.
    "siglip_384": {
        "name": "vit_so400m_patch14_siglip_384", "size": 384, "trunk": {"embed_dim": 16, "depth": 1},
        "text": {"context_length": 9, "vocab_size": 90, "width": 18, "heads": 3, "layers": 1, "norm_kwargs": {"eps": 1e-2}, "act_kwargs": {"approximate": "none"}},
        "dtype": torch.float16,
    },
}


def build(case):
    config = {
        "embed_dim": case["trunk"]["embed_dim"], "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {"image_size": case["size"], "timm_model_name": case["name"], "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {**TEXT, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", **case["text"]},
    }
    create = timm.create_model
    open_clip.timm_model.timm.create_model = lambda *args, **kwargs: create(*args, **kwargs, **case["trunk"])
    try:
        model = CustomTextCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], init_logit_bias=-10).eval()
    finally:
        open_clip.timm_model.timm.create_model = create
    return config, model


def t5(folder, vocabulary):
    """As timm's folders have it: converted from SentencePiece, with T5's extra tokens behind the model's."""
    with tempfile.TemporaryDirectory() as scratch:
        spiece(Path(scratch), vocabulary)
        T5TokenizerFast(vocab_file=f"{scratch}/spiece.model", pad_token="</s>", extra_ids=3, model_max_length=64).save_pretrained(folder)
    (folder / "spiece.model").unlink(missing_ok=True)


def rows(text, seed):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(0, text["vocab_size"], (9, text["context_length"]), generator=generator)
    for row, kept in ((0, 1), (1, 3), (2, 0)):
        made[row, kept:] = 1
    made[8] = made[1]
    return made


def pictures(size):
    values = [((7919 * k + 131 * i) % 4096) / 1024 - 2 for i in range(PICTURES) for k in range(3 * size**2)]
    return torch.tensor(values, dtype=torch.float32).reshape(PICTURES, 3, size, size)


def make(name, case, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config, model = build(case)
    fill(model, seed)
    position = model.visual.trunk.pos_embed
    with torch.no_grad():
        position.copy_(0.5 * torch.randn(position.shape, generator=torch.Generator().manual_seed(seed)))
    model.to(case["dtype"])
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}, indent=2) + "\n")
    model = model.float()
    input_ids = rows(config["text_cfg"], seed)
    with torch.no_grad():
        image, text, scale, bias = model(pictures(case["size"]), input_ids)
    tensors = {"input_ids": input_ids, "text_embeds": text, "image_embeds": image, "logit_scale": scale.reshape(1), "logit_bias": bias.reshape(1)}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, HERE / f"{name}.safetensors", PINS)
    size = sum(f.stat().st_size for f in folder.iterdir()) // 1024
    print(f"{name}: {len(input_ids)} texts, spread {text.std(dim=0).mean():.3f} {image.std(dim=0).mean():.3f}, {size} KiB")
    if "tokenizer" not in case:
        return
    {"t5": t5, "gemma": gemma}[case["tokenizer"]](folder, case["text"]["vocab_size"])
    tokenizer = HFTokenizer(str(folder), context_length=case["text"]["context_length"], **TEXT["tokenizer_kwargs"])
    preprocess = image_transform_v2(PreprocessCfg(size=case["size"], **PREPROCESS), is_train=False)
    pixels = preprocess(Image.open(ROOT / PICTURE)).unsqueeze(0)
    with torch.no_grad():
        image, text, scale, bias = model(pixels, tokenizer(CLEANED))
    cosines = (image @ text.T)[0]
    (HERE / f"{name}.json").write_text(json.dumps({
        "picture": PICTURE, "labels": CLEANED, "similarity": cosines.tolist(), "probability": torch.sigmoid(scale * cosines + bias).tolist(),
    }) + "\n")
    if case["tokenizer"] == "t5":
        strings = texts() + CLEANED
        with (HERE / "tokens-t5.jsonl").open("w") as out:
            for string, row in zip(strings, tokenizer(strings, context_length=SLOTS).tolist()):
                out.write(json.dumps({"t": string, "ids": row}) + "\n")


if __name__ == "__main__":
    for number, (name, case) in enumerate(CASES.items()):
        make(name, case, number + 1)
