"""Makes the goldens of the CLIP graphs: small model folders with random weights
and real architecture, and the embeddings transformers computes with them.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/clip/make.py

Writes goldens/clip/NAME/ (config.json, weights) and goldens/clip/NAME.safetensors
(input_ids, text_embeds, image_embeds, logit_scale; the pins are its metadata).
Pixel k of the picture number i is ((7919 k + 131 i) mod 4096) / 1024 - 2, which
float32 holds exactly, so pictures are not stored.
"""

import copy
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

HERE = Path(__file__).parent
PICTURES = 3

# Every case differs from the others in several ways that change the result.
CASES = {
    # As openai/clip-vit-*: quick_gelu, the old end token rule.
    "quick_gelu": {
        "config": {
            "projection_dim": 40,
            "text_config": {
                "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 3, "num_attention_heads": 4,
                "max_position_embeddings": 77, "hidden_act": "quick_gelu", "eos_token_id": 2,
            },
            "vision_config": {
                "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": 3, "image_size": 56, "patch_size": 14,
                "hidden_act": "quick_gelu",
            },
        },
        "dtype": torch.float32,
    },
    # As laion's: gelu, the new rule; float16 weights, other epsilons, wide heads.
    "gelu_f16": {
        "config": {
            "projection_dim": 72,
            "text_config": {
                "vocab_size": 300, "hidden_size": 48, "intermediate_size": 200,
                "num_hidden_layers": 2, "num_attention_heads": 2,
                "max_position_embeddings": 77, "hidden_act": "gelu",
                "layer_norm_eps": 1e-3, "eos_token_id": 299,
            },
            "vision_config": {
                "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
                "num_attention_heads": 8, "image_size": 56, "patch_size": 14,
                "hidden_act": "gelu", "layer_norm_eps": 1e-2,
            },
        },
        "dtype": torch.float16,
    },
    # Shards, bfloat16, a picture that is no multiple of the patch, one plane,
    # one layer, a short context, an end token that is not the highest id.
    "sharded_bf16": {
        "config": {
            "projection_dim": 24,
            "text_config": {
                "vocab_size": 320, "hidden_size": 60, "intermediate_size": 84,
                "num_hidden_layers": 1, "num_attention_heads": 5,
                "max_position_embeddings": 12, "hidden_act": "gelu_new", "eos_token_id": 7,
            },
            "vision_config": {
                "hidden_size": 40, "intermediate_size": 44, "num_hidden_layers": 1,
                "num_attention_heads": 4, "image_size": 31, "patch_size": 7,
                "num_channels": 1, "hidden_act": "relu", "layer_norm_eps": 1e-6,
            },
        },
        "dtype": torch.bfloat16,
        "shard": "30KB",
    },
    # An old configuration: a second copy of each section, which wins with its
    # defaults over the first.
    "section_dicts": {
        "config": {
            "projection_dim": 32,
            "text_config": {
                "vocab_size": 330, "hidden_size": 64, "intermediate_size": 72,
                "num_hidden_layers": 2, "num_attention_heads": 8,
                "max_position_embeddings": 77, "hidden_act": "gelu", "eos_token_id": 2,
                "layer_norm_eps": 0.1,
            },
            "text_config_dict": {
                "vocab_size": 330, "hidden_size": 64, "intermediate_size": 72,
                "num_hidden_layers": 2, "num_attention_heads": 8, "eos_token_id": 329,
            },
            "vision_config": {
                "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 12, "image_size": 32, "patch_size": 16,
                "hidden_act": "gelu", "layer_norm_eps": 0.1,
            },
            "vision_config_dict": {
                "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2,
                "image_size": 32, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
            },
        },
        "dtype": torch.float32,
    },
}


def fill(model, seed):
    """Weights that make every part of the model count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                parameter.fill_(2.6592 + 0.1 * seed)
            elif name == "logit_bias":
                parameter.fill_(-0.5 * seed)
            elif any(part in name for part in ("norm", "layrnorm", "ln_")):
                parameter.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            elif "embedding.weight" in name and parameter.dim() == 2:
                parameter.copy_(0.7 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)


def rows(config, seed):
    """Padded token rows: short, long, cut, without an end, twice the same."""
    generator = torch.Generator().manual_seed(seed)
    text = config.text_config
    length = text.max_position_embeddings
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    start = text.vocab_size - 2
    made = []
    lengths = [2, 3, 4, 4, 5, 7, 7, 7, length - 1, length, length]
    for index, n in enumerate(min(n, length) for n in lengths):
        middle = torch.randint(8, text.vocab_size - 2, (n - 2,), generator=generator).tolist()
        made.append([start, *middle, end] + [0] * (length - n))
        if index == 6:
            made.append(list(made[-1]))
    # Two end tokens, then other tokens: the first counts.
    made.append([start, 9, end, 10, end, 11] + [12] * (length - 6))
    # No end token at all.
    made.append([start, *range(8, 8 + length - 1)])
    # Many rows with one beginning.
    shared = torch.randint(8, text.vocab_size - 2, (5,), generator=generator).tolist()
    for n in (1, 1, 2, 3, 3, 4):
        own = torch.randint(8, text.vocab_size - 2, (n,), generator=generator).tolist()
        made.append([start, *shared, *own, end] + [0] * (length - n - 7))
    return torch.tensor(made)


def pictures(config):
    vision = config.vision_config
    shape = (PICTURES, vision.num_channels, vision.image_size, vision.image_size)
    pixels = vision.num_channels * vision.image_size**2
    values = [
        ((7919 * k + 131 * i) % 4096) / 1024 - 2 for i in range(PICTURES) for k in range(pixels)
    ]
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def make(name, case, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # The reference writes into what it is given.
    config = CLIPConfig(**copy.deepcopy(case["config"]))
    model = CLIPModel(config).eval()
    fill(model, seed)
    model.to(case["dtype"]).save_pretrained(
        folder, safe_serialization=True, max_shard_size=case.get("shard", "10GB")
    )
    # The configuration as its author wrote it, not as this version widens it.
    written = {"architectures": ["CLIPModel"], "model_type": "clip", **case["config"]}
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")

    model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    input_ids = rows(model.config, seed)
    with torch.no_grad():
        text = model.get_text_features(input_ids=input_ids)
        image = model.get_image_features(pixel_values=pictures(model.config))
    tensors = {
        "input_ids": input_ids,
        "text_embeds": text / text.norm(p=2, dim=-1, keepdim=True),
        "image_embeds": image / image.norm(p=2, dim=-1, keepdim=True),
        "logit_scale": model.logit_scale.exp().detach().reshape(1),
    }
    pins = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / f"{name}.safetensors", pins)
    again = load_file(HERE / f"{name}.safetensors")
    spread = again["text_embeds"].std(dim=0).mean().item(), again["image_embeds"].std(dim=0).mean().item()
    print(f"{name}: {len(input_ids)} texts, spread of the embeddings {spread[0]:.3f} {spread[1]:.3f}")


if __name__ == "__main__":
    for number, (name, case) in enumerate(CASES.items()):
        make(name, case, number + 1)
