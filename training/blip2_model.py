"""The small BLIP-2 (OPT): its config files, and its first vision weights from the trained CLIP."""
import json
import os

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

QUERIES = 8
WIDTH = 160


def config(vocab):
    newline = vocab["Ċ"]
    vision = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3, image_size=64, patch_size=8,
                  hidden_act="gelu", layer_norm_eps=1e-5, qkv_bias=True, attention_dropout=0.0, initializer_range=0.02)
    qformer = dict(hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=5, intermediate_size=640, encoder_hidden_size=192,
                   cross_attention_frequency=2, vocab_size=len(vocab), hidden_act="gelu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                   max_position_embeddings=128, layer_norm_eps=1e-12, initializer_range=0.02)
    text = dict(hidden_size=WIDTH, ffn_dim=640, num_hidden_layers=3, num_attention_heads=5, vocab_size=len(vocab), word_embed_proj_dim=WIDTH,
                max_position_embeddings=128, do_layer_norm_before=True, activation_function="relu", dropout=0.0, attention_dropout=0.0,
                bos_token_id=2, eos_token_id=newline, pad_token_id=1, init_std=0.02, prefix="</s>")
    return vision, qformer, text


def build(vocab):
    vision, qformer, text = config(vocab)
    c = Blip2Config(vision_config=Blip2VisionConfig(**vision).to_dict(), qformer_config=Blip2QFormerConfig(**qformer).to_dict(),
                    text_config=OPTConfig(**text).to_dict(), num_query_tokens=QUERIES, image_token_index=vocab["<image>"], attn_implementation="eager")
    m = Blip2ForConditionalGeneration(c)
    torch.nn.init.normal_(m.query_tokens, std=0.5)
    return m


@torch.no_grad()
def take_vision(model, clip, pixels):
    """Copy CLIP's vision tower.  BLIP-2 has no layer norm before the layers: its mean effect
    (centring, gain, mean 1/std over `pixels`) is folded into the embeddings."""
    e, v = clip.vision_model.embeddings, model.vision_model
    x = e.patch_embedding(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([e.class_embedding.expand(len(x), 1, -1), x], 1) + e.position_embedding.weight
    ln = clip.vision_model.pre_layrnorm
    inv = (x.var(-1, unbiased=False) + ln.eps).rsqrt().mean()
    centre = lambda w, dim: (w - w.mean(dim, keepdim=True))
    ve = v.embeddings
    g = ln.weight * inv
    ve.patch_embedding.weight.copy_(centre(e.patch_embedding.weight, 0) * g.view(-1, 1, 1, 1))
    ve.patch_embedding.bias.zero_()
    ve.class_embedding.copy_((centre(e.class_embedding, 0) * g).view(1, 1, -1))
    ve.position_embedding.copy_((centre(e.position_embedding.weight, 1) * g + ln.bias)[None])
    for a, b in zip(clip.vision_model.encoder.layers, v.encoder.layers):
        s = a.self_attn
        b.self_attn.qkv.weight.copy_(torch.cat([s.q_proj.weight, s.k_proj.weight, s.v_proj.weight]))
        b.self_attn.qkv.bias.copy_(torch.cat([s.q_proj.bias, s.k_proj.bias, s.v_proj.bias]))
        b.self_attn.projection.load_state_dict(s.out_proj.state_dict())
        for n in ("layer_norm1", "layer_norm2"):
            getattr(b, n).load_state_dict(getattr(a, n).state_dict())
        b.mlp.fc1.load_state_dict(a.mlp.fc1.state_dict())
        b.mlp.fc2.load_state_dict(a.mlp.fc2.state_dict())
    v.post_layernorm.load_state_dict(clip.vision_model.post_layernorm.state_dict())


def save(state, vocab, folder):
    from safetensors.torch import save_file
    # lm_head is the token embedding again (tied), so it is not stored twice.
    keep = {k: x.detach().to(torch.float16).contiguous() for k, x in state.items() if "lm_head" not in k}
    save_file(keep, f"{folder}/model.safetensors", metadata={"format": "pt"})
    os.chmod(f"{folder}/model.safetensors", 0o644)
    vision, qformer, text = config(vocab)
    json.dump({
        "architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2", "torch_dtype": "float16", "tie_word_embeddings": True,
        "initializer_factor": 1.0, "initializer_range": 0.02, "num_query_tokens": QUERIES, "use_decoder_only_language_model": True,
        "image_token_index": vocab["<image>"],
        "vision_config": dict(vision, model_type="blip_2_vision_model"), "qformer_config": dict(qformer, model_type="blip_2_qformer"),
        "text_config": dict(text, model_type="opt", architectures=["OPTForCausalLM"], tie_word_embeddings=True)},
        open(f"{folder}/config.json", "w"), indent=2)
    json.dump({"processor_class": "Blip2Processor", "num_query_tokens": QUERIES,
               "image_token": dict(content="<image>", lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)},
              open(f"{folder}/processor_config.json", "w"), indent=2)
    json.dump({"bos_token_id": 2, "eos_token_id": text["eos_token_id"], "pad_token_id": 1, "max_new_tokens": 24}, open(f"{folder}/generation_config.json", "w"), indent=2)
    json.dump({
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_processor_type": "BlipImageProcessor",
        "processor_class": "Blip2Processor", "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 64, "width": 64}}, open(f"{folder}/preprocessor_config.json", "w"), indent=2)
