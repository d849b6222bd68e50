#!/usr/bin/env python3
"""What the pinned transformers generates with beams, penalties and minimum lengths, for the model folders that make.py made.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/blip2/generation.py [NAME...]

Writes generation.json into each folder: cases of picture, prompt ids, options (the arguments of `generate`), token ids and why they
stopped. A case is kept only if it hangs on no rounding: the same tokens must come out when every logit of every step is moved by noise.
"""
import json, random, sys
from importlib.metadata import version

import torch
from make import HERE, MODELS, PICTURES, config_of, load
from safetensors.torch import load_file

# Ten times what two right computations of a logit differ by.
NOISE = 2e-4
DRAWS = 3
PER_MODEL = 48

GREEDY = [
    dict(min_new_tokens=6),
    dict(min_length=9),
    dict(repetition_penalty=1.3),
    dict(repetition_penalty=0.8),
    dict(no_repeat_ngram_size=1),
    dict(no_repeat_ngram_size=2),
    dict(no_repeat_ngram_size=3),
    dict(no_repeat_ngram_size=2, repetition_penalty=1.2, min_new_tokens=10),
]
BEAMS = [
    dict(num_beams=2),
    dict(num_beams=3),
    dict(num_beams=4, length_penalty=2.0),
    dict(num_beams=4, length_penalty=0.0),
    dict(num_beams=5, length_penalty=-1.5),
    dict(num_beams=8),
    dict(num_beams=3, min_new_tokens=7),
    dict(num_beams=3, min_length=6, length_penalty=0.5),
    dict(num_beams=4, repetition_penalty=1.5),
    dict(num_beams=4, no_repeat_ngram_size=2),
    dict(num_beams=3, early_stopping=True),
    dict(num_beams=3, early_stopping="never"),
    dict(num_beams=4, early_stopping="never", length_penalty=-0.5),
    dict(num_beams=4, no_repeat_ngram_size=3, repetition_penalty=1.2, min_new_tokens=5, length_penalty=1.5),
    dict(num_beams=2, early_stopping=True, repetition_penalty=0.7, no_repeat_ngram_size=1),
]


class Noisy:
    """Within it, the logits of `model` are moved by normal noise of size NOISE."""

    def __init__(self, model, seed):
        self.model, self.generator = model, torch.Generator().manual_seed(seed)

    def __enter__(self):
        def move(_module, _inputs, logits):
            return logits + NOISE * torch.randn(logits.shape, generator=self.generator)

        self.hook = self.model.language_model.lm_head.register_forward_hook(move)

    def __exit__(self, *_):
        self.hook.remove()


@torch.no_grad()
def generate(model, pixel_values, prompt, limit, options):
    kwargs = dict(options)
    if prompt is not None:
        kwargs.update(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
    ids = model.generate(pixel_values, max_new_tokens=limit, **kwargs)[0].tolist()
    # The language model is called with embeddings: the ids it knows of are the start token and what it says.
    assert ids[0] == model.config.text_config.bos_token_id
    ids = ids[1:]
    eos = model.config.text_config.eos_token_id
    if "num_beams" not in options and eos in ids:
        assert eos not in ids[: len(ids) - 1]
    return ids, "end" if ids[-1] == eos else "length"


def make(name):
    folder, spec = HERE / name, MODELS[name]
    config = config_of(spec)
    eos = json.loads((folder / "expected.json").read_text())["eos_token_id"]
    config.text_config.eos_token_id = eos
    model = load(folder, config, spec)
    model.language_model.config.eos_token_id = eos
    model.language_model.generation_config.eos_token_id = eos
    pixel_values = load_file(folder / "expected.safetensors")["pictures"].float() / 127.5 - 1
    bos = config.text_config.bos_token_id
    prompts = [None, None, None, [bos, 7, 31], [bos, 11, 5, 60, 12, 9, 44]]
    numbers = random.Random(name)
    # Every set of options first, then again as long as cases are wanted.
    wanted = GREEDY + BEAMS
    cases, dropped, greedy_alike = [], 0, 0
    attempts = 0
    while len(cases) < PER_MODEL:
        options = wanted[attempts % len(wanted)]
        attempts += 1
        picture, prompt, limit = numbers.randrange(PICTURES), numbers.choice(prompts), numbers.choice([1, 4, 10, 16, 16])
        limit = min(limit + options.get("min_new_tokens", 0), 16)
        pixels = pixel_values[picture : picture + 1]
        ids, stop = generate(model, pixels, prompt, limit, options)
        for draw in range(DRAWS):
            with Noisy(model, attempts * DRAWS + draw):
                if generate(model, pixels, prompt, limit, options) != (ids, stop):
                    dropped += 1
                    break
        else:
            plain, _ = generate(model, pixels, prompt, limit, {})
            greedy_alike += plain == ids
            cases.append(dict(picture=picture, prompt_ids=prompt, max_new_tokens=limit, options=options, ids=ids, stop=stop))
    pins = {package: version(package) for package in ("torch", "transformers")}
    lines = ",\n".join(json.dumps(case) for case in cases)
    (folder / "generation.json").write_text(json.dumps(dict(pins=pins, cases=[]))[:-2] + f"\n{lines}\n]}}\n")
    ended = sum(case["stop"] == "end" for case in cases)
    print(f"{name}: {len(cases)} cases, {dropped} hung on rounding, {ended} ended, {greedy_alike} as greedy search has them", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        make(name)
