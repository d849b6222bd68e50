#!/usr/bin/env python3
"""Small caption models of the real architectures (BLIP, BLIP for questions, GIT, BLIP-2
with T5, InstructBLIP with T5) with random weights, and what the pinned transformers says with them: the golden files of crates/caption.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/captioners/make.py [NAME...]

Each folder is as `save_pretrained` writes it (f32, f16, bf16, whole or in shards) plus
  expected.json         the captions: prompt ids (as the tokenizer gives them; for InstructBLIP
                        also as the Q-Former's does), limits, token ids (the new ones alone),
                        why each stopped; the pins
  expected.safetensors  pictures u8 [N,3,S,S] (pixel_values = u8 / 127.5 - 1), and for them
                        picture_embeds (what the encoders make of them) and logits (of the first
                        generated token of the first case)
The reference computes in float32 whatever the type of the stored weights, as the graphs do, and
each caption alone: what it does with the padding of a batch is not what it does without.
"""
import json, os, shutil, sys, warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
from safetensors.torch import save_file
from transformers import (Blip2Config, Blip2ForConditionalGeneration, BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering, GitConfig, GitForCausalLM,
                          InstructBlipConfig, InstructBlipForConditionalGeneration)

HERE = Path(__file__).resolve().parent
PICTURES = 4
# Greedy decoding must not hang on a rounding: no two best logits of a step may be closer than this.
MARGIN = 2e-3
CLS = 5

VISION = dict(hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2, image_size=32, patch_size=8)
TEXT = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2, vocab_size=96, max_position_embeddings=64)
BLIP_TEXT = TEXT | dict(bos_token_id=2, pad_token_id=0)

QFORMER = dict(hidden_size=24, intermediate_size=36, num_attention_heads=4, num_hidden_layers=3, vocab_size=64)
T5 = dict(model_type="t5", d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2, vocab_size=96, bos_token_id=1, pad_token_id=0,
          decoder_start_token_id=0, relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
# The Q-Former of InstructBLIP has a vocabulary of its own: the words of the other one, the last first.
QFORMER_WORDS = 101

MODELS = {
    "blip_plain": dict(family="blip"),
    "blip_heads": dict(family="blip", text=dict(num_attention_heads=8, hidden_act="gelu_new", layer_norm_eps=1e-2, num_hidden_layers=3),
                       vision=dict(image_size=38, patch_size=9, num_attention_heads=6, hidden_act="quick_gelu", layer_norm_eps=1e-2), dtype=torch.bfloat16),
    "blip_defaults": dict(family="blip", dtype=torch.float16, shard="40KB", omit=True, vision=dict(num_attention_heads=12), text=dict(num_attention_heads=8)),
    "vqa_plain": dict(family="vqa", vision=dict(hidden_size=32, num_attention_heads=4)),
    "vqa_f16": dict(family="vqa", dtype=torch.float16, vision=dict(hidden_size=32, num_attention_heads=8), text=dict(hidden_act="gelu_new", num_attention_heads=2)),
    "git_plain": dict(family="git"),
    "git_gelu": dict(family="git", dtype=torch.float16, vision=dict(hidden_act="gelu", layer_norm_eps=1e-2, image_size=36, patch_size=9),
                     text=dict(hidden_act="gelu_new", num_attention_heads=2, layer_norm_eps=1e-3)),
    "git_defaults": dict(family="git", dtype=torch.bfloat16, omit=True, vision=dict(num_attention_heads=12), text=dict(num_attention_heads=12, hidden_size=36)),
    "t5_plain": dict(family="t5"),
    "t5_wide": dict(family="t5", dtype=torch.float16, shard="60KB",
                    text=dict(d_kv=6, num_layers=3, num_decoder_layers=1, feed_forward_proj="relu", tie_word_embeddings=True, layer_norm_epsilon=1e-2,
                              relative_attention_num_buckets=32, relative_attention_max_distance=128, decoder_start_token_id=7)),
    "t5_silu": dict(family="t5", dtype=torch.bfloat16, queries=9,
                    text=dict(d_kv=16, num_heads=2, num_decoder_layers=3, feed_forward_proj="gated-silu", relative_attention_num_buckets=6,
                              relative_attention_max_distance=5)),
    # Seeds before: the reference itself is 1e-4 away from what it says in float64.
    "instruct_plain": dict(family="instruct", queries=6, seed=3),
    # The longest prompt has as many tokens as the Q-Former has positions.
    "instruct_odd": dict(family="instruct", dtype=torch.float16, shard="90KB", queries=5,
                         vision=dict(image_size=38, patch_size=9, num_attention_heads=6, hidden_act="quick_gelu", layer_norm_eps=1e-2, qkv_bias=False),
                         qformer=dict(hidden_size=20, num_attention_heads=5, num_hidden_layers=4, cross_attention_frequency=3, hidden_act="gelu_new",
                                      layer_norm_eps=1e-2, max_position_embeddings=7),
                         text=dict(d_kv=6, num_layers=1, feed_forward_proj="relu", tie_word_embeddings=True, decoder_start_token_id=7)),
    "instruct_defaults": dict(family="instruct", dtype=torch.bfloat16, omit=True, vision=dict(num_attention_heads=16, hidden_size=32),
                              qformer=dict(num_attention_heads=12, num_hidden_layers=1, cross_attention_frequency=2, max_position_embeddings=512, hidden_size=12)),
}


def build(spec):
    vision, extra = VISION | spec.get("vision", {}), spec.get("text", {})
    if spec["family"] == "git":
        return GitForCausalLM(GitConfig(vision_config=vision, bos_token_id=CLS, pad_token_id=0, **(TEXT | extra)))
    if spec["family"] == "t5":
        return Blip2ForConditionalGeneration(Blip2Config(
            vision_config=vision, qformer_config=QFORMER, text_config=T5 | extra, num_query_tokens=spec.get("queries", 4)))
    if spec["family"] == "instruct":
        qformer = QFORMER | dict(vocab_size=QFORMER_WORDS, max_position_embeddings=16) | spec.get("qformer", {})
        # `generate` asks for the architecture: LLaMA has answers to mend.
        text = T5 | dict(architectures=["T5ForConditionalGeneration"]) | extra
        return InstructBlipForConditionalGeneration(InstructBlipConfig(
            vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=spec.get("queries", 4)))
    config = BlipConfig(vision_config=vision, text_config=BLIP_TEXT | extra)
    return (BlipForQuestionAnswering if spec["family"] == "vqa" else BlipForConditionalGeneration)(config)


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"): value = 1 + 0.2 * noise
        elif name.endswith("bias"): value = 0.2 * noise
        elif "position_embedding" in name: value = 1.5 * noise
        elif "embed" in name or "shared" in name or "query_tokens" in name or "relative" in name: value = 0.7 * noise
        else: value = 1.5 * noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)


def end_with(model, family, token):
    if family == "git":
        model.config.eos_token_id = model.generation_config.eos_token_id = token
    elif family in ("t5", "instruct"):
        model.config.text_config.eos_token_id = token
        model.language_model.config.eos_token_id = model.language_model.generation_config.eos_token_id = token
    else:
        model.config.text_config.sep_token_id = token


def arguments(family, prompt):
    """What `generate` is given as input_ids, and how many of the ids it gives back are not new."""
    ids = None if prompt is None else torch.tensor([prompt])
    if family == "git":
        # The end token behind a prompt would be the end; without text the class token is the beginning.
        ids = torch.tensor([[CLS]]) if prompt is None else ids[:, :-1]
        return ids, ids.shape[1]
    if family in ("vqa", "t5", "instruct") or prompt is None:
        return ids, 1
    return ids, len(prompt) - 1


def qformer_ids(prompt):
    """The prompt as the tokenizer of the Q-Former gives it."""
    return [QFORMER_WORDS - 1 - id for id in prompt]


def more_arguments(family, prompt):
    """What `generate` is given besides."""
    return dict(qformer_input_ids=torch.tensor([qformer_ids(prompt)])) if family == "instruct" else {}


@torch.no_grad()
def say(model, family, pixel_values, prompt, limit):
    """The new tokens of one greedy caption, and for each how near the second best token came."""
    kwargs = dict(max_new_tokens=limit, output_scores=True, return_dict_in_generate=True, **more_arguments(family, prompt))
    ids, skip = arguments(family, prompt)
    out = model.generate(pixel_values=pixel_values, input_ids=ids, **kwargs)
    new = out.sequences[0].tolist()[skip:]
    return new, [(scores[0].topk(2).values.diff().abs()).item() for scores in out.scores], out.scores[0]


def wanted(family, row):
    """Prompts as a tokenizer gives them, the last id being the end token's place, and limits."""
    prompts = [[CLS, 7, 31, 4], [CLS, 11, 60, 12, 9, 44, 4], [CLS, 8, 4], [CLS, 33, 8, 21, 14, 4], [CLS, 90, 17, 4]]
    # InstructBLIP: what the tokenizer makes of no text.
    first = [CLS, 4] if family == "instruct" else None
    return [(p, 20) for p in (prompts[:4] if family == "vqa" else [first, *prompts[:3]])] + [(prompts[row], 1)]


def cases(model, family, pixel_values):
    return [(row, prompt, limit, *say(model, family, pixel_values[row : row + 1], prompt, limit)[:2])
            for row in range(len(pixel_values)) for prompt, limit in wanted(family, row)]


def case(family, picture, prompt, limit):
    """What is asked."""
    more = dict(qformer_ids=qformer_ids(prompt)) if family == "instruct" else {}
    return dict(picture=picture, prompt_ids=prompt, **more, max_new_tokens=limit)


def ended(family, free, end):
    """What the captions `free` of an end are with this one; how near the second best token came."""
    found, smallest = [], float("inf")
    for row, prompt, limit, ids, margins in free:
        if end in ids:
            ids = ids[: ids.index(end) + 1]
        smallest = min(smallest, *margins[: len(ids)])
        found.append(case(family, row, prompt, limit) | dict(ids=ids, stop="end" if end in ids else "length"))
    return found, smallest


def good(found, margin):
    long = [c for c in found if c["max_new_tokens"] > 1]
    over = [c for c in long if c["stop"] == "end"]
    varied = len({tuple(c["ids"]) for c in long}) > len(long) // 2 and sum(len(set(c["ids"])) >= 3 for c in long) >= len(long) // 3
    return margin >= MARGIN and varied and 2 <= len(over) < len(long) and len({len(c["ids"]) for c in long}) >= 3


@torch.no_grad()
def expected_tensors(model, spec, pictures, pixel_values, first):
    family = spec["family"]
    if family == "git":
        picture = model.git.visual_projection(model.git.image_encoder(pixel_values).last_hidden_state)
    else:
        picture = model.vision_model(pixel_values).last_hidden_state
    if family in ("t5", "instruct"):
        queries = model.query_tokens.expand(PICTURES, -1, -1)
        read = dict(input_ids=torch.tensor([qformer_ids(first["prompt_ids"])] * PICTURES)) if family == "instruct" else {}
        states = model.qformer(query_embeds=queries, encoder_hidden_states=picture, **read).last_hidden_state
        picture = model.language_projection(states[:, : queries.shape[1]])
    logits = torch.cat([say(model, family, row[None], first["prompt_ids"], 1)[2] for row in pixel_values])
    return {name: tensor.contiguous() for name, tensor in dict(pictures=pictures, picture_embeds=picture, logits=logits).items()}


def make(name):
    spec, folder = MODELS[name], HERE / name
    dtype = spec.get("dtype", torch.float32)
    for seed in range(spec.get("seed", 1), 4000):
        model = build(spec).eval()
        randomize(model, seed)
        model = model.to(dtype).float()  # what the file will hold
        size = model.config.vision_config.image_size
        pictures = torch.randint(0, 256, (PICTURES, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        pixel_values = pictures.float() / 127.5 - 1
        # The end token is one that this model says sooner or later in some captions and never in others.
        end_with(model, spec["family"], -1)
        free = cases(model, spec["family"], pixel_values)
        ends = sorted({i for *_, ids, _ in free for i in ids[1:]} - {0, 1, 2, CLS})
        choices = [(end, *ended(spec["family"], free, end)) for end in ends]
        choices = [choice for choice in choices if good(*choice[1:])]
        if choices:
            break
    else:
        sys.exit(f"{name}: no seed serves")
    end, found, margin = choices[0]
    end_with(model, spec["family"], end)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, safe_serialization=True, max_shard_size=spec.get("shard", "10GB"))
    if spec.get("omit"):  # keys whose default fits
        config = json.loads((folder / "config.json").read_text())
        text = config.get("text_config", config)
        text.pop("num_attention_heads", None)
        config["vision_config"].pop("num_attention_heads", None)
        for key in ("position_embedding_type", "hidden_act", "layer_norm_eps", "is_decoder"):
            text.pop(key, None)
            config["vision_config"].pop(key, None)
        for key in ("num_attention_heads", "hidden_act", "layer_norm_eps", "cross_attention_frequency", "max_position_embeddings"):
            config.get("qformer_config", {}).pop(key, None)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = type(model).from_pretrained(folder, torch_dtype=torch.float32).eval()
    assert ended(spec["family"], cases(model, spec["family"], pixel_values), end)[0] == found, f"{name}: the folder does not say what the model said"
    save_file(expected_tensors(model, spec, pictures, pixel_values, found[0]), folder / "expected.safetensors")
    pins = {package: version(package) for package in ("torch", "transformers", "safetensors", "numpy")}
    body = json.dumps(dict(pins=pins, seed=seed, end_token_id=end, smallest_margin=round(margin, 5), cases=[]))[:-2]
    lines = ",\n".join(json.dumps(case) for case in found)
    (folder / "expected.json").write_text(f"{body}\n{lines}\n]}}\n")
    total = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, end token {end}, margin {margin:.4f}, {total / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        make(name)
