#!/usr/bin/env python3
"""What the pinned transformers says about the demo pictures with the demo BLIP-2.

    .imprompt/goldens-venv/bin/python goldens/blip2/demo.py

Reads models/demo-blip2 and goldens/demo/*.png (made by goldens/interrogate/demo.py),
writes goldens/demo/captions.json. Run it again whenever the model or the pictures change: the
test that reads it compares the model's SHA-256 and says so.
"""
import hashlib, json, os, sys, warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/demo-blip2"
PICTURES = ROOT / "goldens/demo"
OUT = ROOT / "goldens/demo/captions.json"
# None is what clip-interrogator does. The others are continued; one has bytes outside ASCII, one ends in a blank.
PROMPTS = [None, "a", "an emoji of", "this is a picture of ", "naïve ☕ drawing:"]
MAX_NEW_TOKENS = 32  # clip-interrogator's caption_max_length
# Captions that hang on less than this between two logits prove nothing: they are left out.
MARGIN = 1e-3


@torch.no_grad()
def generate(model, processor, image, prompt):
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, output_scores=True, return_dict_in_generate=True)
    ids = out.sequences[0].tolist()
    assert ids[0] == model.config.text_config.bos_token_id
    best = torch.stack([scores[0].topk(2).values for scores in out.scores])
    text = processor.batch_decode(out.sequences, skip_special_tokens=True)[0].strip()
    prompt_ids = inputs["input_ids"][0].tolist() if prompt is not None else None
    return dict(prompt=prompt, prompt_ids=prompt_ids, ids=ids[1:], caption=text), (best[:, 0] - best[:, 1]).min().item()


def main():
    pictures = sorted(PICTURES.glob("*.png"))
    if len(pictures) < 20:
        sys.exit(f"{PICTURES} has {len(pictures)} pictures; run goldens/interrogate/demo.py first")
    torch.set_num_threads(1)
    processor = Blip2Processor.from_pretrained(MODEL)
    model = Blip2ForConditionalGeneration.from_pretrained(MODEL, torch_dtype=torch.float32).eval()
    captions, close = [], 0
    for picture in pictures:
        image = Image.open(picture).convert("RGB")
        for prompt in PROMPTS:
            caption, margin = generate(model, processor, image, prompt)
            if margin < MARGIN:
                close += 1
                continue
            captions.append(dict(picture=picture.name, **caption))
    head = dict(
        pins={name: version(name) for name in ("torch", "transformers", "tokenizers", "Pillow")},
        model_sha256=hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
        max_new_tokens=MAX_NEW_TOKENS, pictures=len(pictures), left_out_as_too_close=close, captions=[],
    )
    lines = ",\n".join(json.dumps(caption, ensure_ascii=False) for caption in captions)
    OUT.write_text(json.dumps(head)[:-2] + "\n" + lines + "\n]}\n")
    print(f"{OUT}: {len(captions)} captions of {len(pictures)} pictures, {close} left out as too close")


if __name__ == "__main__":
    main()
