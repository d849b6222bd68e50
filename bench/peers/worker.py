#!/usr/bin/env python3
"""The peers at work: clip-interrogator 0.6.0 over open_clip, transformers and Pillow, as their users run them.

Reads one JSON object a line from stdin, {"do": NAME, ...arguments}, and answers each with one line on stdout:
{"seconds": [...], ...} or {"error": TEXT}. Nothing but the work itself is in the seconds.
"""
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import numpy as np
import torch
from PIL import Image

torch.set_num_threads(int(os.environ.get("PEER_THREADS", "2")))

OPEN_CLIP = {"clip-vit-b-32": "ViT-B-32", "clip-vit-l-14": "ViT-L-14"}


def clock(work, repeat):
    """The seconds of each of `repeat` runs, and what the last gave."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - started)
    return seconds, found


def to_open_clip(state):
    """The weights of a transformers CLIPModel under open_clip's names."""
    made = {"logit_scale": state["logit_scale"], "text_projection": state["text_projection.weight"].T,
            "visual.proj": state["visual_projection.weight"].T,
            "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
            "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
            "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
            "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
            "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"]}
    for end in ("weight", "bias"):
        made[f"ln_final.{end}"] = state[f"text_model.final_layer_norm.{end}"]
        made[f"visual.ln_pre.{end}"] = state[f"vision_model.pre_layrnorm.{end}"]
        made[f"visual.ln_post.{end}"] = state[f"vision_model.post_layernorm.{end}"]
    for side, prefix in (("text_model", ""), ("vision_model", "visual.")):
        layer = 0
        while f"{side}.encoder.layers.{layer}.mlp.fc1.weight" in state:
            old, new = f"{side}.encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
            for end in ("weight", "bias"):
                parts = [state[f"{old}.self_attn.{part}_proj.{end}"] for part in "qkv"]
                made[f"{new}.attn.in_proj_{end}"] = torch.cat(parts)
                for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                    made[f"{new}.{b}.{end}"] = state[f"{old}.{a}.{end}"]
            layer += 1
    return made


class Peer:
    def __init__(self):
        self.clips, self.captioners, self.interrogators = {}, {}, {}

    def clip(self, folder):
        """open_clip's model with the weights of a transformers folder, and its transform."""
        if folder not in self.clips:
            import open_clip
            from safetensors.torch import load_file
            name = OPEN_CLIP[Path(folder).name]
            model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None, force_quick_gelu=True)
            model.load_state_dict(to_open_clip(load_file(Path(folder) / "model.safetensors")), strict=True)
            self.clips[folder] = model.eval(), preprocess, open_clip.get_tokenizer(name)
        return self.clips[folder]

    def captioner(self, folder):
        if folder not in self.captioners:
            from transformers import Blip2ForConditionalGeneration, BlipForConditionalGeneration
            kind = Blip2ForConditionalGeneration if "blip2" in folder else BlipForConditionalGeneration
            model = kind.from_pretrained(folder, torch_dtype=torch.float32).eval()
            # As on our side, the first caption is not measured.
            side = model.config.vision_config.image_size
            model.generate(pixel_values=torch.zeros(1, 3, side, side), max_new_tokens=2)
            self.captioners[folder] = model
        return self.captioners[folder]

    def processor(self, folder):
        from transformers import BertTokenizerFast, BlipImageProcessor, BlipProcessor
        return BlipProcessor(BlipImageProcessor.from_pretrained(folder), BertTokenizerFast.from_pretrained(folder))

    def forget(self):
        self.__init__()
        return {}

    @torch.no_grad()
    def text(self, model, texts, repeat=1, embeddings=0):
        """Texts to embeddings, as LabelTable makes them."""
        clip, _, tokenize = self.clip(model)

        def work():
            features = clip.encode_text(tokenize(texts))
            features /= features.norm(dim=-1, keepdim=True)
            return features

        seconds, features = clock(work, repeat)
        return {"seconds": seconds, "count": len(texts), "embeddings": features[:embeddings].tolist()}

    def tokens(self, texts):
        import open_clip
        return {"tokens": [len(open_clip.tokenizer._tokenizer.encode(text)) for text in texts]}

    @torch.no_grad()
    def chain(self, model, prompt, phrases, repeat=1):
        """A part of a step of the chain, as rank_top scores it."""
        clip, _, tokenize = self.clip(model)
        image = torch.ones(1, clip.text_projection.shape[1]) / clip.text_projection.shape[1] ** 0.5

        def work():
            features = clip.encode_text(tokenize([f"{prompt}, {phrase}" for phrase in phrases]))
            features /= features.norm(dim=-1, keepdim=True)
            return (features @ image.T).argmax().item()

        seconds, _ = clock(work, repeat)
        return {"seconds": seconds, "count": len(phrases)}

    @torch.no_grad()
    def image(self, model, batch, repeat=3):
        clip, _, _ = self.clip(model)
        pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))

        def work():
            features = clip.encode_image(pixels)
            return features / features.norm(dim=-1, keepdim=True)

        seconds, _ = clock(work, repeat)
        return {"seconds": seconds, "count": batch}

    def picture(self, file, repeat=10):
        """Decoding, resizing to 224 on the shorter side, and all of open_clip's transform, on one core."""
        from open_clip.transform import image_transform
        threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
        torch.set_num_threads(1)
        os.sched_setaffinity(0, {max(cores)})
        transform = image_transform(224, is_train=False)

        def decode():
            return Image.open(file).convert("RGB")

        image = decode()
        width, height = image.size
        size = (224, 224 * height // width) if width <= height else (224 * width // height, 224)
        found = {"decode": clock(decode, repeat)[0], "resize": clock(lambda: image.resize(size, Image.BICUBIC), repeat)[0],
                 "seconds": clock(lambda: decode().resize(size, Image.BICUBIC), repeat)[0],
                 "transform": clock(lambda: transform(image), repeat)[0]}
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)
        return found

    @torch.no_grad()
    def rank(self, table, repeat=5):
        """LabelTable.rank of the whole table, its best 2048; and the best 10 of one product."""
        from clip_interrogator import clip_interrogator as package
        from safetensors.numpy import load_file
        tensors = load_file(table)
        image = torch.from_numpy(tensors["image_embeds"])[None]
        made = package.LabelTable.__new__(package.LabelTable)
        made.config = package.Config(quiet=True, device="cpu")
        made.chunk_size, made.device = made.config.chunk_size, "cpu"
        made.labels = list(range(len(tensors["embeds"])))
        made.embeds = [row.astype(np.float32) for row in tensors["embeds"]]
        two_stages, candidates = clock(lambda: made.rank(image, made.config.flavor_intermediate_count), repeat)
        whole = torch.from_numpy(np.stack(made.embeds))
        top_k, best = clock(lambda: (image @ whole.T).topk(10), repeat)
        return {"seconds": two_stages, "top_k": top_k, "candidates": candidates, "best": best.indices[0].tolist(),
                "values": (image @ whole.T)[0][candidates].tolist()}

    @torch.no_grad()
    def caption(self, model, batch, tokens=20, repeat=1):
        """`generate` of exactly so many tokens; when each of them was known is read off the scores. The encoders of a
        single picture are timed alone before."""
        from transformers import LogitsProcessor, LogitsProcessorList
        captioner = self.captioner(model)
        side = captioner.config.vision_config.image_size
        pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))

        class Watch(LogitsProcessor):
            def __call__(self, ids, scores):
                times.append(time.perf_counter())
                return scores

        encode, first, token, total = [], [], [], []
        for _ in range(repeat):
            if batch == 1:
                started = time.perf_counter()
                states = captioner.vision_model(pixels)[0]
                if hasattr(captioner, "qformer"):
                    captioner.qformer(query_embeds=captioner.query_tokens, encoder_hidden_states=states)
                encode.append(time.perf_counter() - started)
            times = []
            started = time.perf_counter()
            captioner.generate(pixel_values=pixels, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False,
                               num_beams=1, logits_processor=LogitsProcessorList([Watch()]))
            total.append(time.perf_counter() - started)
            first.append(times[0] - started)
            token += [b - a for a, b in zip(times, times[1:])]
        return {"seconds": total, "encode": encode, "first_token": first, "token": token, "tokens": len(times)}

    def interrogator(self, clip, captioner, vocabulary, tables):
        """clip-interrogator as it is, over these weights, terms and their embeddings."""
        key = (clip, captioner, vocabulary, tables)
        if key not in self.interrogators:
            from clip_interrogator import clip_interrogator as package
            name = OPEN_CLIP[Path(clip).name]
            cache = Path(vocabulary) / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            for table in Path(tables).glob("*.safetensors"):
                shutil.copy(table, cache / f"{name}_random_{table.name}")
            config = package.Config(clip_model_name=f"{name}/random", caption_model_name="blip-large", download_cache=False,
                                    cache_path=str(cache), data_path=vocabulary, device="cpu", quiet=True,
                                    caption_max_length=20)
            config.clip_model, config.clip_preprocess, _ = self.clip(clip)
            config.caption_model, config.caption_processor = self.captioner(captioner), self.processor(captioner)
            # Every caption has 20 tokens, as on the other side.
            config.caption_model.generation_config.min_new_tokens = 20
            self.interrogators[key] = package.Interrogator(config)
        return self.interrogators[key]

    @torch.no_grad()
    def interrogate(self, clip, captioner, vocabulary, tables, picture, mode, limits=None, caption=None):
        peer = self.interrogator(clip, captioner, vocabulary, tables)
        image = Image.open(picture).convert("RGB")
        run = {"best": peer.interrogate, "fast": peer.interrogate_fast, "classic": peer.interrogate_classic}[mode]
        seconds, prompt = clock(lambda: run(image, caption=caption, **(limits or {})), 1)
        return {"seconds": seconds, "prompt": str(prompt)}

    @torch.no_grad()
    def interrogate_parts(self, clip, captioner, vocabulary, tables, picture):
        """What mode best does besides its chain: the seconds of each, and how many candidates a step has."""
        peer = self.interrogator(clip, captioner, vocabulary, tables)
        image = Image.open(picture).convert("RGB")
        caption_seconds, caption = clock(lambda: peer.generate_caption(image), 1)
        feature_seconds, features = clock(lambda: peer.image_to_features(image), 1)
        from clip_interrogator import clip_interrogator as package
        merge_seconds, merged = clock(lambda: package._merge_tables(
            [peer.artists, peer.flavors, peer.mediums, peer.movements, peer.trendings], peer), 1)
        rank_seconds, chosen = clock(lambda: merged.rank(features, peer.config.flavor_intermediate_count), 1)
        return {"seconds": caption_seconds, "caption": caption, "image": feature_seconds, "merge": merge_seconds,
                "rank": rank_seconds, "candidates": len(set(chosen))}

    def gemm(self, repeat=5):
        """GFLOP/s of a large float32 product: PyTorch's, and ONNX Runtime's, which imprompt computes with; and
        ONNX Runtime's of int8."""
        size = 2048
        a, b = torch.randn(size, size), torch.randn(size, size)
        flop = 2 * size ** 3 / 1e9
        found = {"torch_float32": flop / min(clock(lambda: a @ b, repeat)[0])}
        import onnx
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()

        def product(node, kind, weights, values):
            graph = helper.make_graph([node], "product", [helper.make_tensor_value_info("a", kind, [size, size])],
                                      [helper.make_tensor_value_info("c", TensorProto.FLOAT if kind == TensorProto.FLOAT
                                                                     else TensorProto.INT32, [size, size])],
                                      [numpy_helper.from_array(weights, "b")])
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            session.run(None, {"a": values})
            return flop / min(clock(lambda: session.run(None, {"a": values}), repeat)[0])

        random = np.random.default_rng(1)
        found["onnxruntime_float32"] = product(helper.make_node("MatMul", ["a", "b"], ["c"]), TensorProto.FLOAT,
                                               b.numpy(), a.numpy())
        found["onnxruntime_int8"] = product(
            helper.make_node("MatMulInteger", ["a", "b"], ["c"]), TensorProto.UINT8,
            random.integers(-127, 127, (size, size)).astype(np.int8), random.integers(0, 255, (size, size)).astype(np.uint8))
        found["onnx"] = onnx.__version__
        return found

    def versions(self):
        from importlib.metadata import version
        names = ("torch", "transformers", "open_clip_torch", "clip-interrogator", "Pillow", "numpy", "onnxruntime")
        return {name: version(name) for name in names} | {"mkl": "MKL" in torch.__config__.show(),
                                                          "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def main():
    # What libraries print is talk.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = Peer()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(peer, asked.pop("do"))(**asked)
        except Exception as error:  # told to the other side, which decides
            import traceback
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
