#!/usr/bin/env python3
"""Small BLIP-2 (OPT) model folders of the real architecture with random weights, and what the
pinned transformers computes with them: the golden files of crates/graph and crates/caption.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/blip2/make.py [NAME...]

Each folder is as `save_pretrained` writes it (f32, f16, bf16, whole or in shards) plus
  expected.json         the captions: prompt ids, limits, token ids, why each stopped; the pins
  expected.safetensors  pictures u8 [N,3,S,S] (pixel_values = u8 / 127.5 - 1), and for them
                        image_embeds, query_embeds, logits (of the first generated token, after bos)
The reference computes in float32 whatever the type of the stored weights, as the graphs do.
"""
import json, os, shutil, sys, warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration

HERE = Path(__file__).resolve().parent
PICTURES = 5
# Greedy decoding must not hang on a rounding: no two best logits of a step may be closer than this.
MARGIN = 2e-3

VISION = dict(hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2, image_size=32, patch_size=8)
QFORMER = dict(hidden_size=24, intermediate_size=36, num_attention_heads=4, num_hidden_layers=3, vocab_size=64)
TEXT = dict(model_type="opt", hidden_size=32, ffn_dim=48, num_attention_heads=4, num_hidden_layers=2, vocab_size=96,
            word_embed_proj_dim=32, max_position_embeddings=64, bos_token_id=2, pad_token_id=1)

# What each folder is there for is in its differences from the three tables above.
MODELS = {
    "plain": dict(queries=4),
    "post_norm": dict(queries=8, text=dict(do_layer_norm_before=False, activation_function="gelu", tie_word_embeddings=False),
                      qformer=dict(cross_attention_frequency=1)),
    "projected": dict(queries=4, text=dict(word_embed_proj_dim=20, num_attention_heads=2), project=20,
                      qformer=dict(cross_attention_frequency=3, num_hidden_layers=4)),
    "no_bias": dict(queries=4, text=dict(enable_bias=False, layer_norm_elementwise_affine=False),
                    vision=dict(qkv_bias=False, hidden_act="quick_gelu", layer_norm_eps=1e-2)),
    "no_final_norm": dict(queries=8, dtype=torch.float16, shard="40KB",
                          text=dict(_remove_final_layer_norm=True, num_attention_heads=8),
                          qformer=dict(hidden_act="relu", layer_norm_eps=1e-2)),
    "untied_bf16": dict(queries=4, dtype=torch.bfloat16, vision=dict(image_size=38, patch_size=9, num_attention_heads=6),
                        text=dict(tie_word_embeddings=False, max_position_embeddings=48),
                        qformer=dict(hidden_size=36, num_attention_heads=6)),
    "tanh_gelu": dict(queries=4, vision=dict(hidden_act="gelu_new"), qformer=dict(hidden_act="gelu_pytorch_tanh"),
                      text=dict(activation_function="gelu_new", num_hidden_layers=3)),
    # Keys whose default fits are left out of config.json.
    "defaults": dict(queries=32, dtype=torch.float16, omit=True, position=3.0),
}


def config_of(spec):
    vision, qformer, text = VISION | spec.get("vision", {}), QFORMER | spec.get("qformer", {}), TEXT | spec.get("text", {})
    if spec.get("omit"):
        vision |= dict(num_attention_heads=16, hidden_size=32)
        qformer |= dict(num_attention_heads=12)
        text |= dict(num_attention_heads=12, hidden_size=24, num_hidden_layers=3)
        for table, keys in ((qformer, ["num_attention_heads"]), (vision, ["num_attention_heads"]),
                            (text, ["num_attention_heads", "word_embed_proj_dim", "max_position_embeddings", "bos_token_id", "pad_token_id"])):
            for key in keys:
                table.pop(key)
    return Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=spec["queries"])


def build(config, spec):
    model = Blip2ForConditionalGeneration(config).eval()
    if spec.get("project"):
        # Queries and word embeddings are joined before OPT's project_in, so both have its input width.
        # The class itself always makes this layer text hidden_size wide, and then cannot join them.
        model.language_projection = torch.nn.Linear(config.qformer_config.hidden_size, spec["project"])
    return model


def randomize(model, seed, position):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        norm = "norm" in name.lower()
        if norm and name.endswith("weight"): value = 1 + 0.2 * noise
        elif name.endswith("bias"): value = 0.2 * noise
        elif "embed_positions" in name: value = position * noise
        elif "embed" in name or "query_tokens" in name or "lm_head" in name: value = 0.7 * noise
        else: value = 1.3 * noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)


def load(folder, config, spec):
    """The folder as it is on disk, in float32."""
    if not spec.get("project"):
        return Blip2ForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32).eval()
    model = build(config, spec)
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unexpected and set(missing) <= {"language_model.lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


@torch.no_grad()
def caption(model, pixel_values, prompts, limit, eos):
    """Greedy `generate` of a batch; prompts are padded on the left, as BLIP-2's processor is told to for batches."""
    kwargs = {}
    if prompts is not None:
        longest, pad = max(map(len, prompts)), model.config.text_config.pad_token_id
        kwargs["input_ids"] = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        kwargs["attention_mask"] = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    # generate() renews the language model's own generation config from text_config, its configuration.
    model.language_model.config.eos_token_id = eos
    model.language_model.generation_config.eos_token_id = eos
    out = model.generate(pixel_values, max_new_tokens=limit, output_scores=True, return_dict_in_generate=True, **kwargs)
    rows, margin = [], float("inf")
    for row, ids in enumerate(out.sequences.tolist()):
        assert ids[0] == model.config.text_config.bos_token_id  # generate() puts it before what it generated
        ids = ids[1:]
        if eos in ids:
            ids = ids[: ids.index(eos) + 1]
        for step in range(len(ids)):
            best = out.scores[step][row].topk(2).values
            margin = min(margin, (best[0] - best[1]).item())
        rows.append(ids)
    return rows, margin


def cases(model, pixel_values, eos):
    """Every caption three ways: alone, in a batch without prompts, in a batch of prompts of different lengths."""
    bos = model.config.text_config.bos_token_id
    prompts = [[bos], [bos, 7, 31], [bos, 11, 5, 60, 12, 9, 44], [bos, 3], [33, 8, 8, 21]]
    found, smallest = [], float("inf")
    for given, limit in ((None, 24), (prompts, 16), (None, 1), (prompts, 12)):
        together, margin = caption(model, pixel_values, given, limit, eos)
        smallest = min(smallest, margin)
        for row in range(PICTURES):
            alone, margin = caption(model, pixel_values[row : row + 1], given and [given[row]], limit, eos)
            smallest = min(smallest, margin)
            if alone[0] != together[row]:
                return None, 0.0
            ids = alone[0]
            found.append(dict(picture=row, prompt_ids=given and given[row], max_new_tokens=limit, ids=ids,
                              stop="end" if eos in ids else "length"))
    return found, smallest


def good(found, margin):
    if not found or margin < MARGIN:
        return False
    free = [c for c in found if c["prompt_ids"] is None and c["max_new_tokens"] == 24]
    lengths = {len(c["ids"]) for c in free}
    varied = sum(len(set(c["ids"])) >= 6 for c in free) >= 3 and len({tuple(c["ids"]) for c in found}) > 12
    return varied and len(lengths) >= 3 and any(c["stop"] == "length" for c in free) and any(1 < len(c["ids"]) < 16 for c in free)


def expected_tensors(model, pictures, pixel_values):
    with torch.no_grad():
        image_embeds = model.vision_model(pixel_values).last_hidden_state
        queries = model.query_tokens.expand(PICTURES, -1, -1)
        mask = torch.ones(image_embeds.shape[:-1], dtype=torch.long)
        hidden = model.qformer(query_embeds=queries, encoder_hidden_states=image_embeds, encoder_attention_mask=mask).last_hidden_state
        query_embeds = model.language_projection(hidden)
        bos = torch.full((PICTURES, 1), model.config.text_config.bos_token_id)
        inputs_embeds = torch.cat([query_embeds, model.get_input_embeddings()(bos)], dim=1)
        logits = model.language_model(inputs_embeds=inputs_embeds).logits[:, -1]
    return {name: tensor.contiguous() for name, tensor in
            dict(pictures=pictures, image_embeds=image_embeds, query_embeds=query_embeds, logits=logits).items()}


def make(name):
    spec, folder = MODELS[name], HERE / name
    for seed in range(1, 4000):
        config = config_of(spec)
        model = build(config, spec)
        randomize(model, seed, spec.get("position", 1.0))
        dtype = spec.get("dtype", torch.float32)
        model = model.to(dtype).float()  # what the file will hold
        size = config.vision_config.image_size
        pictures = torch.randint(0, 256, (PICTURES, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        pixel_values = pictures.float() / 127.5 - 1
        # The end token is one that this model says sooner or later in some captions and never in others.
        free, _ = caption(model, pixel_values, None, 24, -1)
        said = {i for ids in free for i in ids[1:16]}
        for eos in sorted(said - {0, 1, 2}):
            lengths = {ids.index(eos) if eos in ids else None for ids in free}
            if None not in lengths or len(lengths) < 3:
                continue
            found, margin = cases(model, pixel_values, eos)
            if good(found, margin):
                break
        else:
            continue
        break
    else:
        sys.exit(f"{name}: no seed serves")

    shutil.rmtree(folder, ignore_errors=True)
    config.text_config.eos_token_id = eos
    model.to(dtype).save_pretrained(folder, safe_serialization=True, max_shard_size=spec.get("shard", "10GB"))
    # The class's own generation config was made before the end token was chosen.
    (folder / "generation_config.json").write_text(json.dumps(
        dict(_from_model_config=True, bos_token_id=2, eos_token_id=eos, pad_token_id=1, transformers_version="4.33.1"), indent=2) + "\n")
    model = load(folder, config, spec)
    again, margin = cases(model, pixel_values, eos)
    assert again == found, f"{name}: the folder does not say what the model said"
    save_file(expected_tensors(model, pictures, pixel_values), folder / "expected.safetensors")
    pins = {package: version(package) for package in ("torch", "transformers", "safetensors", "numpy")}
    body = json.dumps(dict(pins=pins, seed=seed, eos_token_id=eos, smallest_margin=round(margin, 5), cases=[]))[:-2]
    lines = ",\n".join(json.dumps(case) for case in found)
    (folder / "expected.json").write_text(f"{body}\n{lines}\n]}}\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, end token {eos}, margin {margin:.4f}, {size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        make(name)
