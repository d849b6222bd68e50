#!/usr/bin/env python3
"""What the pinned transformers generates with beams, penalties and minimum lengths, for the model folders that make.py made:
goldens/blip2/generation.py for the other families.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/captioners/generation.py [NAME...]
"""
import importlib.util, json, random, sys
from importlib.metadata import version

import torch
from safetensors.torch import load_file

import make as captioners

sys.path.insert(0, str(captioners.HERE.parent / "blip2"))
del sys.modules["make"]  # the other folder's script has the same name
spec = importlib.util.spec_from_file_location("blip2_generation", captioners.HERE.parent / "blip2" / "generation.py")
blip2 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(blip2)

PER_MODEL = 24


def head(model, family):
    """The module whose output are the logits."""
    if family == "git":
        return model.output
    return model.language_model.lm_head if family in ("t5", "instruct") else model.text_decoder.cls


class Noisy(blip2.Noisy):
    def __init__(self, module, seed):
        self.module, self.generator = module, torch.Generator().manual_seed(seed)

    def __enter__(self):
        self.hook = self.module.register_forward_hook(
            lambda _module, _inputs, logits: logits + blip2.NOISE * torch.randn(logits.shape, generator=self.generator))


@torch.no_grad()
def generate(model, family, pixel_values, prompt, limit, options, end):
    ids, skip = captioners.arguments(family, prompt)
    more = captioners.more_arguments(family, prompt)
    out = model.generate(pixel_values=pixel_values, input_ids=ids, max_new_tokens=limit, **more, **options)
    new = out[0].tolist()[skip:]
    return new, "end" if new[-1] == end else "length"


def make(name):
    folder, spec = captioners.HERE / name, captioners.MODELS[name]
    family = spec["family"]
    end = json.loads((folder / "expected.json").read_text())["end_token_id"]
    model = type(captioners.build(spec)).from_pretrained(folder, torch_dtype=torch.float32).eval()
    captioners.end_with(model, family, end)
    pixel_values = load_file(folder / "expected.safetensors")["pictures"].float() / 127.5 - 1
    prompts = [prompt for prompt, limit in captioners.wanted(family, 0) if limit > 1]
    numbers = random.Random(name)
    wanted = blip2.GREEDY + blip2.BEAMS
    cases, dropped, attempts = [], 0, 0
    while len(cases) < PER_MODEL:
        options = wanted[attempts % len(wanted)]
        attempts += 1
        picture, prompt, limit = numbers.randrange(len(pixel_values)), numbers.choice(prompts), numbers.choice([1, 4, 10, 16, 16])
        limit = min(limit + options.get("min_new_tokens", 0), 16)
        given = (model, family, pixel_values[picture : picture + 1], prompt, limit, options, end)
        found = generate(*given)
        for draw in range(blip2.DRAWS):
            with Noisy(head(model, family), attempts * blip2.DRAWS + draw):
                if generate(*given) != found:
                    dropped += 1
                    break
        else:
            asked = captioners.case(family, picture, prompt, limit)
            cases.append(asked | dict(options=options, ids=found[0], stop=found[1]))
    pins = {package: version(package) for package in ("torch", "transformers")}
    lines = ",\n".join(json.dumps(case) for case in cases)
    (folder / "generation.json").write_text(json.dumps(dict(pins=pins, cases=[]))[:-2] + f"\n{lines}\n]}}\n")
    print(f"{name}: {len(cases)} cases, {dropped} hung on rounding, {sum(c['stop'] == 'end' for c in cases)} ended", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or captioners.MODELS:
        make(name)
