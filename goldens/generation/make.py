#!/usr/bin/env python3
"""What the pinned transformers makes of scores before a token is chosen: the golden files of crates/caption/src/generation.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/generation/make.py

  cases.json          for each case: the ids said so far, how many of them are the prompt's, options (arguments of `generate`)
  scores.safetensors  for each case N: scores.N (of the model), processed.N (after the processors), warped.N (after the warpers, too)
Processors and warpers are those that `generate` itself makes of the options, in its order.
"""
import json, random
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).resolve().parent
EOS = [3, 7]
WIDTH = 48
CASES = 120

CHOICES = dict(
    repetition_penalty=[1.0, 1.0, 1.2, 2.5, 0.6],
    no_repeat_ngram_size=[0, 0, 1, 2, 3, 4],
    min_new_tokens=[0, 0, 3, 8],
    min_length=[0, 0, 5, 12],
    temperature=[1.0, 0.3, 0.7, 1.6],
    top_k=[0, 1, 3, 10, 50],
    top_p=[1.0, 0.95, 0.8, 0.5, 0.1],
)


def main():
    numbers, generator = random.Random(7), torch.Generator().manual_seed(7)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WIDTH, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    cases, tensors = [], {}
    while len(cases) < CASES:
        options = {key: numbers.choice(values) for key, values in CHOICES.items()}
        # Few different ids, so that there is something to repeat.
        ids = [numbers.randrange(10) for _ in range(numbers.randrange(1, 14))]
        prompt = numbers.randrange(0, len(ids) + 1)
        scores = numbers.choice([0.5, 2.0, 6.0]) * torch.randn(1, WIDTH, generator=generator)
        if numbers.random() < 0.2:
            scores = scores.round()  # ties
        config = GenerationConfig(do_sample=True, eos_token_id=EOS, **options)
        processors = model._get_logits_processor(config, prompt, None, None, [])
        warpers = model._get_logits_warper(config)
        seen = torch.tensor([ids])
        processed = processors(seen, scores.clone())
        kept = torch.isfinite(processed).sum().item()
        if kept == 0:
            continue
        warped = warpers(seen, processed.clone())
        # The reference's sort leaves open which of equal scores top_p keeps: no such case.
        if options["top_p"] < 1:
            before = processed / options["temperature"]
            k = min(options["top_k"] or WIDTH, WIDTH)
            before = before.masked_fill(before < before.topk(k).values[..., -1, None], -float("inf"))
            sums = before.sort().values.softmax(-1).cumsum(-1)
            cut = before[torch.isfinite(before) & ~torch.isfinite(warped)]
            if (sums - (1 - options["top_p"])).abs().min() < 1e-5 or torch.isin(cut, warped[torch.isfinite(warped)]).any():
                continue
        number = len(cases)
        for name, value in (("scores", scores), ("processed", processed), ("warped", warped)):
            tensors[f"{name}.{number}"] = value[0].contiguous()
        cases.append(dict(ids=ids, prompt=prompt, options=options))
    pins = {package: version(package) for package in ("torch", "transformers")}
    body = json.dumps(dict(pins=pins, eos_token_ids=EOS, width=WIDTH, cases=[]))[:-2]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "cases.json").write_text(f"{body}\n{lines}\n]}}\n")
    save_file(tensors, HERE / "scores.safetensors")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
