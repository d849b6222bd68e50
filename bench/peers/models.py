#!/usr/bin/env python3
"""Model folders of the full sizes with random weights: what they compute is noise, what it costs is real.

    PYTHON bench/peers/models.py FOLDER NAME...

Every folder is as `save_pretrained` writes it. All weights are float16 numbers, stored as float32: so they are of most
checkpoints that were trained in float16, and keeping them in float16 loses nothing. The weights of a
folder that is complete are left alone. NAMEs are the keys of MODELS.
"""
import gzip
import json
import shutil
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import open_clip
import torch
from safetensors.torch import save_file
from transformers import (Blip2Config, Blip2ForConditionalGeneration, BlipConfig, BlipForConditionalGeneration,
                          CLIPConfig, CLIPModel)
from transformers.modeling_utils import no_init_weights

ROOT = Path(__file__).resolve().parents[2]
SEED = 20230923
OPENAI = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])

# The decoder layers of OPT-2.7b and the layers of ViT-g that are kept of 32 and of 39.
OPT_LAYERS, VIT_G_LAYERS = 4, 4


def clip(text, vision, projection):
    shared = dict(hidden_act="quick_gelu")
    return CLIPModel, CLIPConfig(
        projection_dim=projection,
        text_config=dict(vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=2, **text, **shared),
        vision_config=dict(image_size=224, **vision, **shared))


def tower(width, layers, heads, **more):
    return dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads, **more)


def blip(vision):
    return BlipForConditionalGeneration, BlipConfig(
        vision_config=dict(image_size=384, patch_size=16, **vision),
        text_config=dict(vocab_size=30524, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                         num_attention_heads=12, encoder_hidden_size=vision["hidden_size"], max_position_embeddings=512,
                         bos_token_id=30522, eos_token_id=2, pad_token_id=0, sep_token_id=102))


def blip2():
    return Blip2ForConditionalGeneration, Blip2Config(
        vision_config=dict(hidden_size=1408, intermediate_size=6144, num_hidden_layers=VIT_G_LAYERS, num_attention_heads=16,
                           image_size=224, patch_size=14, qkv_bias=True),
        qformer_config=dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, encoder_hidden_size=1408),
        text_config=dict(model_type="opt", vocab_size=50272, hidden_size=2560, word_embed_proj_dim=2560, ffn_dim=10240,
                         num_hidden_layers=OPT_LAYERS, num_attention_heads=32, max_position_embeddings=2048,
                         bos_token_id=2, eos_token_id=50118, pad_token_id=1),
        num_query_tokens=32)


MODELS = {
    "clip-vit-b-32": lambda: clip(tower(512, 12, 8), tower(768, 12, 12, patch_size=32), 512),
    "clip-vit-l-14": lambda: clip(tower(768, 12, 12), tower(1024, 24, 16, patch_size=14), 768),
    "blip-base": lambda: blip(tower(768, 12, 12)),
    "blip-large": lambda: blip(tower(1024, 24, 16)),
    "blip2-opt-shapes": blip2,
}


@torch.no_grad()
def fill(model):
    """Small numbers, so that nothing saturates, rounded to float16."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        parameter.data = torch.empty(parameter.shape)
        if name == "logit_scale":
            parameter.fill_(4.6052)
        elif parameter.dim() == 1 and name.endswith("weight"):  # of a layer norm
            parameter.fill_(1.0)
        elif parameter.dim() == 1 and name.endswith("bias"):
            parameter.fill_(0.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
        parameter.copy_(parameter.half())


def bpe():
    """The merges and the vocabulary of OpenAI's CLIP, out of open_clip's file."""
    with gzip.open(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1:49152 - 256 - 2 + 1]
    characters = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = characters + [c + "</w>" for c in characters] + ["".join(merge.split()) for merge in merges]
    return merges, tokens + ["<|startoftext|>", "<|endoftext|>"]


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value, indent=1) + "\n")


def clip_files(folder):
    merges, tokens = bpe()
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write(folder, "vocab.json", {token: number for number, token in enumerate(tokens)})
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    write(folder, "special_tokens_map.json", special)
    write(folder, "tokenizer_config.json", dict(tokenizer_class="CLIPTokenizer", model_max_length=77, do_lower_case=True, **special))
    write(folder, "preprocessor_config.json", dict(
        image_processor_type="CLIPImageProcessor", do_resize=True, size=dict(shortest_edge=224), resample=3, do_center_crop=True,
        crop_size=dict(height=224, width=224), do_rescale=True, rescale_factor=1 / 255, do_normalize=True, do_convert_rgb=True, **OPENAI))


def captioner_processor(folder, kind, side):
    write(folder, "preprocessor_config.json", dict(
        image_processor_type="BlipImageProcessor", processor_class=kind, do_resize=True, size=dict(height=side, width=side),
        resample=3, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, do_convert_rgb=True, **OPENAI))


def blip_files(folder):
    """A BERT vocabulary of BLIP's size: its special tokens where they belong, else words of CLIP's. So a caption of 20
    tokens has 20 of CLIP's, about as many as one that says something."""
    words = [token[:-4] for token in bpe()[1] if token.endswith("</w>")]
    words = [word for word in words if word.isascii() and word.isalpha()]
    words = ["[PAD]", *words[:99], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words[99:30517], "[DEC]", "[ENC]"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    special = dict(bos_token="[DEC]", additional_special_tokens=["[ENC]"])
    write(folder, "special_tokens_map.json", special)
    write(folder, "tokenizer_config.json", dict(tokenizer_class="BertTokenizer", do_lower_case=True, model_max_length=512, **special))
    captioner_processor(folder, "BlipProcessor", 384)


def blip2_files(folder):
    """The tokenizer of the demo model; the ids that it does not have are said too, but never read as text."""
    for file in (ROOT / "models/demo-blip2").glob("*"):
        if file.name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"):
            shutil.copy(file, folder)
    captioner_processor(folder, "Blip2Processor", 224)


def make(name, folder):
    if not (folder / "complete").exists():
        print(f"making {name}", file=sys.stderr, flush=True)
        weights(name, folder)
        (folder / "complete").touch()
    {"clip": clip_files, "blip": blip_files, "blip2": blip2_files}[name.split("-")[0]](folder)


def weights(name, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind, config = MODELS[name]()
    with no_init_weights():
        model = kind(config)
    fill(model)
    model.tie_weights()
    tensors, seen = {}, set()
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in seen:  # a tied weight is stored once
            seen.add(value.data_ptr())
            tensors[key] = value.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.architectures = [kind.__name__]
    config.save_pretrained(folder)


if __name__ == "__main__":
    torch.set_num_threads(2)
    for name in sys.argv[2:]:
        make(name, Path(sys.argv[1]) / name)
