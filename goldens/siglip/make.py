"""Makes the goldens of SigLIP and SigLIP 2: small models with random weights and
real architecture, small tokenizers of the real kinds, and what transformers 4.57.6
makes of them.

    goldens/setup && .imprompt/goldens-venv-siglip/bin/python goldens/siglip/make.py

Writes goldens/siglip/NAME/ (configurations, weights, tokenizer),
goldens/siglip/NAME.safetensors (input_ids, text_embeds, image_embeds, logit_scale,
logit_bias) and goldens/siglip/NAME.json (labels of one picture through the folder's
own image processor and tokenizer). goldens/siglip/tokens-*.jsonl: strings of
goldens/text/clip.jsonl as the two tokenizers read them, padded to 16 slots.

SigLIP's tokenizer is the slow SiglipTokenizer over a SentencePiece model trained here
as SigLIP's was (unigrams, nmt_nfkc). SigLIP 2's is GemmaTokenizerFast with a
lower-casing normaliser in front, which is what Siglip2Tokenizer of transformers 5 is.
"""

import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from clip.make import fill, pictures  # noqa: E402

PICTURE = "goldens/demo/photograph-chelsea.png"
LABELS = ["a cat", "A Cat!", "a red apple", "two dogs on the beach", "croissant", "", "rocket, " * 40]
SLOTS = 16
PINS = {
    "torch": torch.__version__, "transformers": transformers.__version__,
    "tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__,
}

CASES = {
    # As google/siglip-*: SentencePiece. The text tower has another width than the image tower.
    "siglip": {
        "config": {
            "text_config": {
                "model_type": "siglip_text_model", "vocab_size": 600, "hidden_size": 32,
                "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4,
                "projection_size": 48,
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 90,
                "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 56, "patch_size": 14,
            },
        },
        "dtype": torch.float32,
        "tokenizer": "spiece",
        "processor": {"resample": 3},
    },
    # As google/siglip2-*: Gemma's tokenizer, float16, a picture that is no multiple of its patch.
    "siglip2": {
        "config": {
            "text_config": {
                "model_type": "siglip_text_model", "vocab_size": 700, "hidden_size": 40,
                "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 5,
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 40, "intermediate_size": 160,
                "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 51, "patch_size": 16,
            },
        },
        "dtype": torch.float16,
        "tokenizer": "gemma",
        "processor": {"resample": 2},
    },
    # Shards, bfloat16, one layer, one plane, few slots, other activations and epsilons.
    "small_bf16": {
        "config": {
            "text_config": {
                "model_type": "siglip_text_model", "vocab_size": 90, "hidden_size": 24,
                "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3,
                "max_position_embeddings": 9, "hidden_act": "gelu", "layer_norm_eps": 1e-2,
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 44,
                "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 20, "patch_size": 6,
                "num_channels": 1, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-3,
            },
        },
        "dtype": torch.bfloat16,
        "shard": "10KB",
    },
}


def texts():
    """Every twelfth string of the CLIP goldens, and some that only these tokenizers care for."""
    lines = (ROOT / "goldens/text/clip.jsonl").read_text().splitlines()
    found = [json.loads(line)["t"] for line in lines[::12]]
    return found + [
        "</s>", "a </s> b", "</s></s>", "cat</s>", "</S> Cat", "<unk> a", "a<unk>b</s>c", "<pad>", "<PAD> <eos>x",
        "<EOS>", "<bos>cat<eos>", "\u2581", "\u2581a\u2581\u2581b", " \u2581 ", "...", "a.b,c!d", "\u3000a\u3000", "a\u00a0b",
        "\u0130\u0399\u03a3 \u03a3\u03a3", "\ufb01ne \uff21\uff22", "\u200bzero\u200bwidth", "e\u0301\u0301", "\U0001f600\U0001f600 a \U0001f600",
        "a\nB\tC\r\nD", "\x00a\x01", "a" * 200, "THE END", "x\ud55c\uae00\u1112\u1161\u11ab",
    ]


def corpus():
    """The project's own words: enough for a few hundred pieces."""
    docs = sorted((ROOT / "models/demo-vocabulary").glob("*.txt"))
    lines = [line.lower() for path in docs for line in path.read_text().splitlines()]
    return lines + ["a photo of a cat", "two dogs on the beach", "a red apple"]


def spiece(folder, vocabulary):
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "corpus.txt"
        source.write_text("\n".join(corpus()))
        sentencepiece.SentencePieceTrainer.train(
            input=str(source), model_prefix=str(Path(scratch) / "spiece"), vocab_size=vocabulary, model_type="unigram",
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc", character_coverage=1.0,
            num_threads=1, minloglevel=2,
        )
        shutil.copy(Path(scratch) / "spiece.model", folder / "spiece.model")
    # As google's folders have it.
    rule = {"lstrip": True, "normalized": True, "rstrip": True, "single_word": False, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": {"1": {"content": "</s>", **rule}, "2": {"content": "<unk>", **rule}},
        "additional_special_tokens": [], "clean_up_tokenization_spaces": True, "do_lower_case": True,
        "eos_token": "</s>", "model_input_names": ["input_ids"], "model_max_length": 64, "pad_token": "</s>",
        "processor_class": "SiglipProcessor", "sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer",
        "unk_token": "<unk>",
    }, indent=2) + "\n")
    return SiglipTokenizer.from_pretrained(folder)


def gemma(folder, vocabulary):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special + fallback, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    # The bytes are pieces of the vocabulary, not tokens that a text may spell.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 <eos>:0", pair="$A:0 <eos>:0 $B:1 <eos>:1", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    rule = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": False, "add_eos_token": True,
        "added_tokens_decoder": {str(i): {"content": token, **rule} for i, token in enumerate(special)},
        "bos_token": "<bos>", "clean_up_tokenization_spaces": False, "eos_token": "<eos>", "model_max_length": 64,
        "pad_token": "<pad>", "padding_side": "right", "processor_class": "SiglipProcessor",
        "tokenizer_class": "GemmaTokenizer", "unk_token": "<unk>",
    }, indent=2) + "\n")
    fast = GemmaTokenizerFast.from_pretrained(folder)
    fast.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), fast.backend_tokenizer.normalizer])
    return fast


def encode(tokenizer, strings, slots):
    return tokenizer(strings, padding="max_length", truncation=True, max_length=slots).input_ids


def rows(config, seed):
    generator = torch.Generator().manual_seed(seed)
    text = config.text_config
    made = torch.randint(0, text.vocab_size, (9, text.max_position_embeddings), generator=generator)
    # Padding behind, all padding, one row twice.
    for row, kept in ((0, 1), (1, 3), (2, 0)):
        made[row, kept:] = 1
    made[8] = made[1]
    return made


def make(name, case, seed):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = SiglipModel(SiglipConfig(**copy.deepcopy(case["config"]))).eval()
    fill(model, seed)
    model.to(case["dtype"]).save_pretrained(folder, max_shard_size=case.get("shard", "10GB"))
    written = {"architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip", **case["config"]}
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    model = SiglipModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    input_ids = rows(model.config, seed)
    with torch.no_grad():
        text = model.get_text_features(input_ids=input_ids)
        image = model.get_image_features(pixel_values=pictures(model.config))
    tensors = {
        "input_ids": input_ids,
        "text_embeds": text / text.norm(p=2, dim=-1, keepdim=True),
        "image_embeds": image / image.norm(p=2, dim=-1, keepdim=True),
        "logit_scale": model.logit_scale.exp().detach().reshape(1),
        "logit_bias": model.logit_bias.detach().reshape(1),
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / f"{name}.safetensors", PINS)
    spread = [tensors[key].std(dim=0).mean().item() for key in ("text_embeds", "image_embeds")]
    print(f"{name}: {len(input_ids)} texts, spread {spread[0]:.3f} {spread[1]:.3f}")
    if "tokenizer" not in case:
        return
    vocabulary = case["config"]["text_config"]["vocab_size"]
    tokenizer = {"spiece": spiece, "gemma": gemma}[case["tokenizer"]](folder, vocabulary)
    size = model.config.vision_config.image_size
    processor = SiglipImageProcessor(size={"height": size, "width": size}, **case["processor"])
    processor.save_pretrained(folder)
    pixels = processor(Image.open(ROOT / PICTURE).convert("RGB"), return_tensors="pt").pixel_values
    # The model asks for lower case; SiglipTokenizer and Siglip2Tokenizer see to it.
    ids = torch.tensor(encode(tokenizer, LABELS, 64))
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=pixels)
    (HERE / f"{name}.json").write_text(json.dumps({
        "picture": PICTURE, "labels": LABELS,
        "similarity": (found.image_embeds @ found.text_embeds.T)[0].tolist(),
        "probability": torch.sigmoid(found.logits_per_image)[0].tolist(),
    }) + "\n")
    strings = texts()
    with (HERE / f"tokens-{case['tokenizer']}.jsonl").open("w") as out:
        for string, row in zip(strings, encode(tokenizer, strings, SLOTS)):
            out.write(json.dumps({"t": string, "ids": row}) + "\n")


if __name__ == "__main__":
    for number, (name, case) in enumerate(CASES.items()):
        make(name, case, number + 1)
