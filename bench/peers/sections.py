"""The sections of scripts/bench-peers but `serving`."""
import json
import os
import shutil
import struct

import bench as common
from bench import CACHE, Failed, HOME, ROOT, models, precisions, repository, say

# About 30 of CLIP's tokens.
PROMPT = ("a painting of a small wooden house beside a lake in the mountains, morning light, by a painter of the "
          "nineteenth century, highly detailed, warm colors, soft shadows")
CANDIDATES = 2048
ROWS, DIMENSION = 111_867, 768
LISTS = ("artists", "flavors", "mediums", "movements", "negative")


def terms(name):
    """A list of clip-interrogator's, each term once whatever its case: equal tokens tie, and the peer breaks ties at random."""
    folder = HOME / "clip-interrogator/clip_interrogator/data"
    lines = (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return list({line.strip().lower(): line.strip() for line in lines if line.strip()}.values())


def spread(values, count):
    """`count` of `values`, from everywhere."""
    return values[::max(1, len(values) // count)][:count]


def texts_file(count):
    file = CACHE / f"flavors-{count}.txt"
    texts = spread(terms("flavors"), count)
    file.write_text("\n".join(texts) + "\n")
    return file, texts


def vocabulary(name, counts, tokens=None):
    """A folder of term lists, cut: label embeddings of all 111,867 take minutes even here. `tokens` counts them: then
    labels of more than LONGEST are left out."""
    folder = CACHE / f"vocabulary-{name}"
    folder.mkdir(exist_ok=True)
    for table in LISTS:
        found = terms(table)
        if tokens:
            # "inspired by" comes before an artist.
            longest = LONGEST - 2 * (table == "artists")
            found = [term for term, count in zip(found, tokens(found)) if count <= longest]
        (folder / f"{table}.txt").write_text("\n".join(spread(found, counts.get(table, 20))) + "\n")
    return folder


def clips(bench):
    names = ["clip-vit-b-32"] if bench.quick else ["clip-vit-l-14", "clip-vit-b-32"]
    return zip(names, models(bench.python, *names))


def shown(name):
    return {"clip-vit-b-32": "ViT-B/32", "clip-vit-l-14": "ViT-L/14", "blip-base": "BLIP-base", "blip-large": "BLIP-large",
            "blip2-opt-shapes": "BLIP-2 with 4 of OPT-2.7b's 32 layers"}[name]


def clip_repositories(bench, name, folder):
    """Ours in the precisions that make products faster: fewer bytes alone do not."""
    return {precision: repository(bench, name, precision, clip=folder) for precision in precisions("high", "int8")}


def tower(folder, side):
    """GFLOP of a token in a tower's products."""
    config = json.loads((folder / "config.json").read_text())[f"{side}_config"]
    width, layers = config.get("hidden_size", {"text": 512, "vision": 768}[side]), config.get("num_hidden_layers", 12)
    return 24 * layers * width ** 2 / 1e9


def tokens(bench, texts):
    """How many tokens each text has, start and end token apart."""
    return bench.peers()["stock"].ask(300, "tokens", texts=texts)["tokens"]


def rates(found, ours_rate):
    """Things a second of both sides: the peers' answers have seconds and a count."""
    values = {}
    for side, answers in found.items():
        if side in ("stock", "tuned"):
            values[side] = [answer["count"] / seconds for answer in answers for seconds in answer["seconds"]]
        else:
            values[side] = [ours_rate(answer) for answer in answers]
    return values


def labels(bench):
    """Label tables: texts to embeddings."""
    ours_count, peer_count = (512, 32) if bench.quick else (2048, 128)
    file, texts = texts_file(ours_count)
    sample = spread(terms("flavors"), peer_count)
    for name, folder in clips(bench):
        repositories = clip_repositories(bench, name, folder)
        # The start token is the same in all of them; the end token is not.
        counts = tokens(bench, texts)
        work = {"gflop": tower(folder, "text") * (sum(counts) / len(counts) + 1), "of": "text"}
        ours = {precision: lambda at=at: bench.ours("text", "--texts", file, "--batch", ours_count, "--requests", 2, "--warm-up", 0,
                                                    repository=at) for precision, at in repositories.items()}
        found = bench.alternate(ours, lambda ask: ask("text", model=str(folder), texts=sample, embeddings=64))
        goal = {"clip-vit-l-14": "40x, int8 110x"}.get(name, "")
        bench.row(f"label table, {shown(name)}", "texts/s", rates(found, lambda answer: answer["per_second"]["texts"]), "higher",
                  f"a sample of {ours_count} terms, the peer's of {peer_count}", goal, work)
        for precision, at in repositories.items():
            told = bench.run([common.IMPROMPT, "embed", "--repo", at, "--text", *sample[:64]]).splitlines()
            rows = [json.loads(line)["embedding"] for line in told]
            theirs = found["stock"][0]["embeddings"]
            apart = max(abs(a - b) for mine, their in zip(rows, theirs) for a, b in zip(mine, their))
            bench.check(f"{shown(name)} {precision}: greatest difference of 64 embeddings from the peer's", f"{apart:.1e}")


def chain(bench):
    """A step of the chain."""
    peer_count = 32 if bench.quick else 128
    file, texts = texts_file(CANDIDATES)
    sample = spread(terms("flavors"), peer_count)
    for name, folder in clips(bench):
        repositories = clip_repositories(bench, name, folder)
        # The prompt once; of each phrase its tokens, the comma and the end token.
        counts = tokens(bench, [PROMPT, *texts])
        work = {"gflop": tower(folder, "text") * (sum(counts) + 1 + 2 * len(texts)), "of": "run"}
        ours = {precision: lambda at=at: bench.ours("chain", "--texts", file, "--prompt", PROMPT, "--batch", CANDIDATES, "--requests", 2,
                                                    "--warm-up", 0, repository=at) for precision, at in repositories.items()}
        found = bench.alternate(ours, lambda ask: ask("chain", model=str(folder), prompt=PROMPT, phrases=sample))
        values = {}
        for side, answers in found.items():
            if side in ("stock", "tuned"):
                values[side] = [s * CANDIDATES / answer["count"] for answer in answers for s in answer["seconds"]]
            else:
                values[side] = [answer["latency_ms"]["p50"] / 1e3 for answer in answers]
        goal = {"clip-vit-l-14": "80x, int8 180x"}.get(name, "")
        bench.row(f"chain step of {CANDIDATES} phrases, {shown(name)}", "s", values, "lower",
                  f"the peer scored {peer_count} of them: scaled, its cost is linear in rows", goal, work)


def image(bench):
    """The image tower."""
    for name, folder in clips(bench):
        repositories = clip_repositories(bench, name, folder)
        patches = {"clip-vit-b-32": 50, "clip-vit-l-14": 257}[name]
        for batch in (1, 8):
            repeat = 1 if bench.quick else 3
            ours = {precision: lambda at=at: bench.ours("image", "--batch", batch, "--requests", 2 * repeat, "--warm-up", 1, repository=at)
                    for precision, at in repositories.items()}
            found = bench.alternate(ours, lambda ask: ask("image", model=str(folder), batch=batch, repeat=repeat))
            values = {side: [s * 1e3 for answer in answers for s in answer["seconds"]] if side in ("stock", "tuned")
                      else [answer["latency_ms"]["p50"] for answer in answers] for side, answers in found.items()}
            bench.row(f"image tower, {shown(name)}, batch {batch}", "ms", values, "lower", "",
                      {"clip-vit-l-14": "2.5x, int8 4x"}.get(name, ""), {"gflop": batch * patches * tower(folder, "vision"), "of": "run"})


def jpeg():
    """A picture of 2048x1536 with the detail of a photograph."""
    file = CACHE / "picture-2048x1536.jpg"
    if not file.exists():
        import numpy
        from PIL import Image
        small = Image.open(ROOT / "goldens/demo/photograph-coffee.png").convert("RGB")
        large = numpy.asarray(small.resize((2048, 1536), Image.LANCZOS), dtype=numpy.float32)
        noise = numpy.random.default_rng(1).normal(0, 6, (1536, 2048, 1))
        Image.fromarray((large + noise).clip(0, 255).astype(numpy.uint8)).save(file, quality=90)
    return file


def picture(bench):
    """A JPEG of 2048x1536 to CLIP's 224 pixels, on one core."""
    file, core = jpeg(), max(os.sched_getaffinity(0))

    def ours():
        command = ["taskset", "-c", core, common.IMPROMPT, "bench", file, "--part", "picture", "--requests", 20, "--json"]
        return json.loads(bench.run(command))

    found = bench.alternate({"f32": ours}, lambda ask: ask("picture", file=str(file)))
    for name, key, stage, goal in (("decode and resize", "seconds", None, "14 ms"), ("decode", "decode", "decode", "11 ms"),
                                   ("resize (bicubic, shorter side 224)", "resize", "resize", ""),
                                   ("resize, crop, normalise (open_clip's transform)", "transform", "pixel_values", "")):
        values = {}
        for side, answers in found.items():
            if side in ("stock", "tuned"):
                values[side] = [s * 1e3 for answer in answers for s in answer[key]]
            elif stage:
                values[side] = [part["p50_ms"] for answer in answers for part in answer["stages"] if part["stage"] == stage]
            else:
                values[side] = [answer["latency_ms"]["p50"] for answer in answers]
        # Pillow has nothing that the preloaded library changes.
        values.pop("tuned", None)
        bench.row(f"JPEG of 2048x1536: {name}", "ms", values, "lower", "one core", goal)


def rank_table():
    """Random rows in the format of clip-interrogator's cache, with a picture's embedding beside them."""
    import hashlib
    import numpy
    from safetensors.numpy import save_file
    file = CACHE / f"table-{ROWS}x{DIMENSION}.safetensors"
    if not file.exists():
        say(f"making {file.name}")
        random = numpy.random.default_rng(7)
        rows = random.normal(size=(ROWS, DIMENSION)).astype(numpy.float32)
        rows /= numpy.linalg.norm(rows, axis=1, keepdims=True)
        image_embeds = random.normal(size=DIMENSION).astype(numpy.float32)
        image_embeds /= numpy.linalg.norm(image_embeds)
        digest = hashlib.sha256(",".join(map(str, range(ROWS))).encode()).hexdigest()
        save_file({"embeds": rows.astype(numpy.float16), "hash": numpy.array([ord(c) for c in digest], dtype=numpy.int8),
                   "image_embeds": image_embeds}, file)
    return file


def rank(bench):
    """clip-interrogator's merged table against a picture."""
    file = rank_table()
    ours = {"f32": lambda: bench.ours("rank", "--table", file, "--batch", ROWS, "--requests", 30)}
    found = bench.alternate(ours, lambda ask: ask("rank", table=str(file), repeat=2 if bench.quick else 5))
    for name, key, stage in (("the reference's two stages, 2,048 candidates", "seconds", "two_stages"), ("plain top 10", "top_k", "top_k")):
        values = {side: [s * 1e3 for answer in answers for s in answer[key]] if side in ("stock", "tuned")
                  else [part["p50_ms"] for answer in answers for part in answer["stages"] if part["stage"] == stage]
                  for side, answers in found.items()}
        bench.row(f"rank {ROWS:,} x {DIMENSION}: {name}", "ms", values, "lower", "", "8 ms", {"gbytes": ROWS * DIMENSION * 2 / 1e9, "of": "run"})
    theirs, (best, candidates) = dict(found["stock"][0]), found["f32"][0]["answers"]
    for answers in found.values():  # thousands of numbers that say nothing afterwards
        for answer in answers:
            for key in ("answers", "candidates", "values"):
                answer.pop(key, None)
    bench.check("best 10 equal", best == theirs["best"])
    places = [n for n, (a, b) in enumerate(zip(candidates, theirs["candidates"])) if a != b]
    if places and set(candidates) == set(theirs["candidates"]):
        value = dict(zip(theirs["candidates"], theirs["values"]))
        apart = max(abs(value[candidates[n]] - theirs["values"][n]) for n in places)
        bench.check("candidates equal", f"the same {len(candidates)}; {len(places)} places swapped between similarities {apart:.0e} apart")
    else:
        bench.check("candidates equal", not places and len(candidates) == len(theirs["candidates"]))


def decoder_bytes(folder):
    """Bytes of float32 weights that a token of a captioner must read."""
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    total = 0
    for name, tensor in header.items():
        # A picture's keys and values are computed once; of the embeddings a row is read.
        is_head = name.endswith(("cls.predictions.decoder.weight", "decoder.embed_tokens.weight"))
        is_layer = ".layer." in name or ".layers." in name or "cls.predictions.transform" in name
        is_decoder = name.startswith(("text_decoder.", "language_model."))
        is_once = "crossattention.self.key" in name or "crossattention.self.value" in name
        if is_decoder and (is_head or is_layer) and not is_once:
            total += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    return total


def measured(found, scale=1.0, stage=None, key="seconds"):
    """Seconds of both sides: the peers' answers under `key`, ours of `stage` or of the whole request."""
    values = {}
    for side, answers in found.items():
        if side in ("stock", "tuned"):
            values[side] = [s * scale for answer in answers for s in answer[key]]
        elif stage:
            values[side] = [part["p50_ms"] / 1e3 * scale for answer in answers for part in answer["stages"] if part["stage"] == stage]
        else:
            values[side] = [answer["latency_ms"]["p50"] / 1e3 * scale for answer in answers]
    return values


def caption(bench):
    """Captions of 20 tokens, alone and eight side by side."""
    names = ["blip-base"] if bench.quick else ["blip-base", "blip2-opt-shapes"]
    for name, folder in zip(names, models(bench.python, *names)):
        bench.forget()
        repositories = {precision: repository(bench, name, precision, captioner=folder) for precision in precisions("high", "f16", "int8", "int4")}
        gbytes = decoder_bytes(folder) / 1e9
        is_blip2 = name.startswith("blip2")
        goal, work, token = "80% of memory in float32, int8 4x, int4 7x", {"gbytes": gbytes, "of": "run"}, {}
        for batch in (1, 8):
            # Eight captions have 19 later tokens to take the median of; their pictures take long.
            plan = ["--requests", 2, "--warm-up", 1] if batch == 1 else ["--requests", 1, "--warm-up", 0]
            ours = {precision: lambda at=at: bench.ours("captioner", "--batch", batch, "--tokens", 20, *plan, repository=at)
                    for precision, at in repositories.items()}
            found = bench.alternate(ours, lambda ask: ask("caption", model=str(folder), batch=batch),
                                    None if batch == 1 else min(bench.rounds, 2))
            token[batch] = measured(found, stage="token", key="token")
            bench.row(f"a token, {shown(name)}, batch {batch}", "s", token[batch], "lower", "", goal if batch == 1 else "", work)
            if is_blip2:
                # 32 layers and the head against 4 and the head: a token costs the bytes it reads.
                layer = 4 * (4 * 2560 ** 2 + 2 * 2560 * 10240) / 1e9
                scale = (gbytes + 28 * layer) / gbytes
                bench.row(f"a token, OPT-2.7b, batch {batch}", "s", measured(found, scale, "token", "token"), "lower",
                          f"extrapolated from 4 of 32 layers, {scale:.2f} times the bytes", goal if batch == 1 else "")
            if batch == 1:
                encoders = "vision tower (4 of 39 layers) and Q-Former" if is_blip2 else "vision tower"
                bench.row(f"{encoders}, {shown(name)}", "s", measured(found, stage="encode", key="encode"), "lower", "", "2x")
                bench.row(f"a whole caption of 20 tokens, {shown(name)}", "s", measured(found), "lower", "", "" if is_blip2 else "2.5x")
        times = {side: common.median(values) / common.median(token[1][side]) for side, values in token[8].items() if token[1].get(side)}
        bench.check(f"{shown(name)}: a token of eight captions over a token of one (goal: under 2)",
                    ", ".join(f"{side} {value:.2f}" for side, value in times.items()))
        for precision, at in repositories.items():  # gigabytes that the next build makes in seconds
            if precision != "f32":
                shutil.rmtree(at)


# Steps of the chain in the line of mode best: the reference's least number. With terms of at most so many of CLIP's tokens
# no prompt fills up before, and both sides take exactly these.
STEPS, LONGEST = 8, 5


def best(bench):
    """Modes fast, classic and best end to end."""
    # Both sides whole, over few terms: are the prompts equal?
    clip, captioner = models(bench.python, "clip-vit-b-32", "blip-base")
    few = vocabulary("few", {"flavors": 40 if bench.quick else 100, "artists": 10})
    least = {"min_flavors": 2, "max_flavors": 3}, ["--min-flavors", 2, "--max-flavors", 3]
    at = repository(bench, f"{clip.name}-{captioner.name}-{few.name}", clip=clip, captioner=captioner, vocabulary=few)
    modes(bench, (clip, captioner, few, at), "ViT-B/32, BLIP-base, few terms", {"best": least, "fast": ({}, []), "classic": ({}, [])},
          rounds=1, only=("stock",))
    bench.forget()
    # The full sizes: the peer's best mode would take hours.
    title, name, sides = full_sizes(bench)
    clip, captioner, many, at = sides
    whole = {"best": ({}, [])} if bench.whole else {}
    found = modes(bench, sides, title, {"fast": ({}, []), "classic": ({}, []), **whole})
    against_parts(bench, at, title, found)
    if not bench.whole:
        reduced = {precision: repository(bench, name, precision, clip=clip, captioner=captioner, vocabulary=many)
                   for precision in precisions("high", "int8") if precision != "f32"}
        extrapolated(bench, sides, title, reduced)
        for one in reduced.values():
            shutil.rmtree(one)


def full_sizes(bench):
    """The largest models with terms enough for a whole chain: what they are called, and both sides' files."""
    sizes = ("clip-vit-b-32", "blip-base") if bench.quick else ("clip-vit-l-14", "blip-large")
    clip, captioner = models(bench.python, *sizes)
    many = vocabulary("many", {"flavors": 3000 if bench.quick else 7600, "artists": 250}, lambda texts: tokens(bench, texts))
    name = f"{clip.name}-{captioner.name}-{many.name}"
    at = repository(bench, name, clip=clip, captioner=captioner, vocabulary=many)
    return f"{shown(sizes[0])} and {shown(sizes[1])}", name, (clip, captioner, many, at)


def tables(at):
    return str(at / "tagger/1/tables")


def modes(bench, sides, title, wanted, rounds=None, only=()):
    """Modes that both sides run whole: the times, and whether the prompts are equal. What ours gave, by mode."""
    clip, captioner, words, at = sides
    file, all_found = str(jpeg()), {}
    for mode, (limits, flags) in wanted.items():
        ours = {"f32": lambda: bench.ours("interrogate", file, "--mode", mode, "--tokens", 20, *flags, "--requests", 1, "--warm-up", 1,
                                          repository=at)}
        found = bench.alternate(ours, lambda ask: ask("interrogate", clip=str(clip), captioner=str(captioner), vocabulary=str(words),
                                                      tables=tables(at), picture=file, mode=mode, limits=limits), rounds, only)
        bench.row(f"mode {mode}, {title}", "s", measured(found), "lower", "both whole", "")
        mine, theirs = found["f32"][0]["answers"][0]["prompt"], found["stock"][0]["prompt"]
        bench.check(f"mode {mode}, {title}: prompts equal", mine == theirs or {"ours": mine, "peer": theirs})
        all_found[mode] = found["f32"]
    return all_found


def against_parts(bench, at, title, found):
    """Modes fast and classic against the caption and the image tower one after the other, each alone."""
    caption, image = [], []
    for _ in range(bench.rounds):
        caption.append(bench.ours("interrogate", str(jpeg()), "--mode", "caption", "--tokens", 20, "--requests", 1, "--warm-up", 1, repository=at))
        image.append(bench.ours("image", "--batch", 1, "--requests", 2, "--warm-up", 1, repository=at))
    bench.raw.append({"caption": caption, "image": image})
    caption, image = (measured({"f32": answers})["f32"] for answers in (caption, image))
    bench.row(f"mode caption, {title}", "s", {"f32": caption}, "lower", "ours alone", "")
    bench.row(f"image tower, {title}", "s", {"f32": image}, "lower", "ours alone", "")
    parts = common.median(caption) + common.median(image)
    for mode in ("fast", "classic"):
        whole = common.median(measured({"f32": found[mode]})["f32"])
        bench.check(f"mode {mode}, {title}: over caption and image tower (goal: 110%)", f"{whole / parts:.0%}")


def extrapolated(bench, sides, title, reduced):
    """Mode best: ours whole, the peer's from a sample of its chain's rows."""
    clip, captioner, words, at = sides
    file, count = str(jpeg()), 32 if bench.quick else 128
    ours = {precision: lambda at=at: bench.ours("interrogate", file, "--mode", "best", "--tokens", 20, "--min-flavors", STEPS,
                                                "--max-flavors", STEPS, "--requests", 1, "--warm-up", 0, repository=at)
            for precision, at in {"f32": at, **reduced}.items()}
    sample = spread(terms("flavors"), count)

    def parts(ask):
        found = ask("interrogate_parts", clip=str(clip), captioner=str(captioner), vocabulary=str(words), tables=tables(at), picture=file)
        return found | {"chain": ask("chain", model=str(clip), prompt=found["caption"], phrases=sample)}

    found = bench.alternate(ours, parts)
    caption = found["f32"][0]["answers"][0]["caption"]
    # 77 slots less the start and the end token; a prompt that fills them ends the chain.
    if tokens(bench, [caption])[0] + STEPS * (LONGEST + 1) > 75:
        raise Failed(f"a caption of {tokens(bench, [caption])[0]} tokens has no room for {STEPS} terms")
    values = measured({side: answers for side, answers in found.items() if side not in ("stock", "tuned")})
    for side in ("stock", "tuned"):
        for answer in found.get(side, []):
            row = answer["chain"]["seconds"][0] / answer["chain"]["count"]
            rows = sum(answer["candidates"] - step for step in range(STEPS))
            once = answer["seconds"][0] + 3 * answer["image"][0] + 2 * (answer["merge"][0] + answer["rank"][0])
            values.setdefault(side, []).append(once + row * rows)
    bench.row(f"mode best, {title}", "s", values, "lower",
              f"{STEPS} chain steps, the reference's least; the peer's extrapolated: caption, pictures, ranking as measured, and the "
              f"steps at the cost of {count} rows", "" if bench.quick else "60x")
    bench.row(f"of it the chain and the ranking, {title}", "s", measured({side: found[side] for side in ("f32", *reduced)}, stage="ranker"),
              "lower", "", "")
    bench.check(f"mode best, {title}: captions equal", caption == found["stock"][0]["caption"])
    prompt = {side: found[side][0]["answers"][0]["prompt"] for side in ("f32", *reduced)}
    bench.check(f"mode best, {title}: prompts equal to float32's",
                ", ".join(f"{side} {'yes' if prompt[side] == prompt['f32'] else 'no'}" for side in reduced))


SECTIONS = {section.__name__: section for section in (labels, chain, image, picture, rank, caption, best)}
