"""What `scripts/gpu-check`'s step `speed` measures, by transformers over PyTorch on the same GPU: CLIP ViT-L/14 and
the language model of BLIP-2 (OPT 2.7b) in float16, with random weights.

    python bench/peers/gpu.py > peers.json

Needs torch with CUDA and transformers. Prints a JSON object a line; times are of whole calls, the GPU waited for.
"""

import json
import statistics
import time

import torch
import transformers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, OPTConfig, OPTForCausalLM

WARM_UP = 3


def measure(name, call, repeat, **facts):
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e3)
    print(json.dumps({"part": name, "p50_ms": statistics.median(times), "repeat": repeat, **facts}), flush=True)


def clip():
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=768
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.float16)
        model = CLIPModel(config).eval()
        torch.set_default_dtype(torch.float32)
    for batch in (1, 8):
        pixels = torch.randn(batch, 3, 224, 224, dtype=torch.float32)
        measure("image", lambda: model.get_image_features(pixel_values=pixels.cuda().half()), 50, batch=batch)
    # As clip-interrogator has it: every row takes all 77 slots.
    for name, rows in (("text", 256), ("chain", 2048)):
        ids = torch.randint(1, 40000, (rows, 77))
        ids[:, 0], ids[:, -1] = 49406, 49407
        measure(name, lambda: model.get_text_features(input_ids=ids.cuda()).float().cpu(), 20, batch=rows, slots=77)


def decoder():
    config = OPTConfig(
        vocab_size=50304, hidden_size=2560, num_hidden_layers=32, ffn_dim=10240, num_attention_heads=32,
        max_position_embeddings=2048, word_embed_proj_dim=2560,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.float16)
        model = OPTForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    for batch in (1, 8):
        # The picture's 32 positions and the start token.
        ids = torch.randint(10, 50000, (batch, 33)).cuda()
        mask = torch.ones_like(ids)

        def generate(tokens):
            return model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens
            )

        took = {}
        for tokens in (1, 21):
            times = []
            for turn in range(WARM_UP + 10):
                torch.cuda.synchronize()
                started = time.perf_counter()
                generate(tokens)
                torch.cuda.synchronize()
                if turn >= WARM_UP:
                    times.append((time.perf_counter() - started) * 1e3)
            took[tokens] = statistics.median(times)
        token = (took[21] - took[1]) / 20
        print(json.dumps({"part": "decoder", "batch": batch, "first_ms": took[1], "token_ms": token}), flush=True)


if __name__ == "__main__":
    facts = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **facts}), flush=True)
    with torch.inference_mode():
        clip()
        torch.cuda.empty_cache()
        decoder()
