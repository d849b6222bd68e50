"""CLIP with the parameter names of transformers' CLIPModel, and patch dropping for the training."""
import json
import math
import os

import torch
import torch.nn as nn
import torch.nn.functional as F

VISION = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3, image_size=64, patch_size=8)
TEXT = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=2, max_position_embeddings=77)
PROJECTION = 128


def attend(q, k, v, causal=False):
    """Plain attention: for short sequences on a CPU it is faster than the fused one, whose backward is slow."""
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        s = s + torch.full(s.shape[-2:], -1e4, dtype=s.dtype).triu(1)
    return s.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.heads = heads

    def forward(self, x, causal):
        B, T, D = x.shape
        w = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        b = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        q, k, v = F.linear(x, w, b).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y = attend(q, k, v, causal)
        return self.out_proj(y.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    def __init__(self, d, m):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, m), nn.Linear(m, d)

    def forward(self, x):
        return self.fc2(F.silu(1.702 * self.fc1(x)) / 1.702)   # quick_gelu, h * sigmoid(1.702 h)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.self_attn, self.mlp = Attention(d, c["num_attention_heads"]), MLP(d, c["intermediate_size"])

    def forward(self, x, causal, drop):
        def keep(y):                                           # stochastic depth
            if not (self.training and drop):
                return y
            return y * (torch.rand(len(y), 1, 1) >= drop) / (1 - drop)
        x = x + keep(self.self_attn(self.layer_norm1(x), causal))
        return x + keep(self.mlp(self.layer_norm2(x)))


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))


class Embeddings(nn.Module):
    pass


class VisionTower(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, p = c["hidden_size"], c["patch_size"]
        e = self.embeddings = Embeddings()
        e.class_embedding = nn.Parameter(torch.randn(d) * d ** -0.5)
        e.patch_embedding = nn.Conv2d(3, d, p, p, bias=False)
        e.position_embedding = nn.Embedding((c["image_size"] // p) ** 2 + 1, d)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.encoder = Encoder(c)

    def forward(self, pixels, drop_patches=0.0, drop_path=0.0):
        e = self.embeddings
        x = e.patch_embedding(pixels).flatten(2).transpose(1, 2)
        B, T, D = x.shape
        x = x + e.position_embedding.weight[1:]
        if self.training and drop_patches:
            keep = torch.rand(B, T).argsort(1)[:, :round(T * (1 - drop_patches))]
            x = x.gather(1, keep[:, :, None].expand(-1, -1, D))
        x = torch.cat([(e.class_embedding + e.position_embedding.weight[0]).expand(B, 1, -1).to(x.dtype), x], 1)
        x = self.pre_layrnorm(x)
        for l in self.encoder.layers:
            x = l(x, False, drop_path)
        return self.post_layernorm(x[:, 0])


class TextTower(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        e = self.embeddings = Embeddings()
        e.token_embedding = nn.Embedding(c["vocab_size"], d)
        e.position_embedding = nn.Embedding(c["max_position_embeddings"], d)
        self.encoder, self.final_layer_norm = Encoder(c), nn.LayerNorm(d)
        self.eos = c["vocab_size"] - 1

    def forward(self, ids):
        e = self.embeddings
        x = e.token_embedding(ids) + e.position_embedding.weight[: ids.shape[1]]
        for l in self.encoder.layers:
            x = l(x, True, 0.0)
        end = (ids == self.eos).int().argmax(1)
        return self.final_layer_norm(x[torch.arange(len(x)), end])


class Clip(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.text_model, self.vision_model = TextTower(dict(TEXT, vocab_size=vocab)), VisionTower(VISION)
        self.visual_projection = nn.Linear(VISION["hidden_size"], PROJECTION, bias=False)
        self.text_projection = nn.Linear(TEXT["hidden_size"], PROJECTION, bias=False)
        for n, p in self.named_parameters():
            if "embedding" in n and p.ndim == 2:
                nn.init.normal_(p, std=0.02)
            elif p.ndim == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
            elif n.endswith("bias"):
                nn.init.zeros_(p)

    def image(self, pixels, **kw):
        return F.normalize(self.visual_projection(self.vision_model(pixels, **kw)).float(), dim=-1)

    def text(self, ids):
        return F.normalize(self.text_projection(self.text_model(ids)).float(), dim=-1)


def config(vocab):
    eos, sos = vocab - 1, vocab - 2
    common = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=PROJECTION, attention_dropout=0.0, dropout=0.0,
                  initializer_factor=1.0, initializer_range=0.02)
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": PROJECTION, "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0, "torch_dtype": "float16",
        "text_config": dict(TEXT, **common, model_type="clip_text_model", vocab_size=vocab, bos_token_id=sos, eos_token_id=eos, pad_token_id=eos),
        "vision_config": dict(VISION, **common, model_type="clip_vision_model", num_channels=3),
    }


def save(state, vocab, folder):
    """Write config.json, preprocessor_config.json and the fp16 weights."""
    from safetensors.torch import save_file
    keep = {k: v.detach().to(torch.float16).contiguous() for k, v in state.items()}
    save_file(keep, f"{folder}/model.safetensors", metadata={"format": "pt"})
    os.chmod(f"{folder}/model.safetensors", 0o644)
    json.dump(config(vocab), open(f"{folder}/config.json", "w"), indent=2)
    json.dump({
        "crop_size": {"height": 64, "width": 64}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor", "image_processor_type": "CLIPImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 64}}, open(f"{folder}/preprocessor_config.json", "w"), indent=2)


def load(folder, vocab):
    from safetensors.torch import load_file
    m = Clip(vocab)
    m.load_state_dict({k: v.float() for k, v in load_file(f"{folder}/model.safetensors").items() if not k.endswith("position_ids")})
    return m.eval()
