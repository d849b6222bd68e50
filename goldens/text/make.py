"""Writes the golden token ids of crates/text, from the pinned Python references.

    .imprompt/goldens-venv/bin/python goldens/text/make.py

Any environment with the pins of goldens/requirements.txt for open_clip_torch (its tokenizer.py and
vocabulary), clip-interrogator (its lists), transformers, tokenizers, ftfy and regex will do; torch is
not needed. Writes, beside this file:

  clip-vocabulary/   vocab.json + merges.txt of CLIP's byte-pair vocabulary (MIT licence, Copyright (c)
                     2021 OpenAI; taken from open_clip's bpe_simple_vocab_16e6.txt.gz, MIT licence)
  clip-small/        its first 1,000 merges as a tokenizer.json of CLIPTokenizerFast
  opt-small/, opt-small-fast/   a small byte-pair vocabulary in the folder layouts of OPT
  clip.jsonl         strings with the ids of open_clip ("o") and of transformers ("h", where they differ)
  clip-small.jsonl, opt.jsonl, opt-decode.jsonl
  truncated.jsonl    over-long strings with open_clip's 77 padded slots and transformers' truncation
  pins.json          the versions that all of it was made with
"""
import gzip
import html
import importlib.util
import json
import random
import shutil
import sys
import types
import unicodedata
from importlib.metadata import distribution, version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PINS = {"open_clip_torch": "2.20.0", "clip-interrogator": "0.6.0", "transformers": "4.33.1",
        "tokenizers": "0.13.3", "ftfy": "6.1.1", "regex": "2023.8.8"}
random.seed(20240917)


def package(name, path):
    return Path(distribution(name).locate_file(path))


def open_clip_tokenizer():
    """open_clip/tokenizer.py by itself; what it takes of torch is an integer array."""
    if importlib.util.find_spec("torch") is None:
        torch = types.ModuleType("torch")
        torch.zeros = lambda rows, columns, dtype: np.zeros((rows, columns), dtype)
        torch.tensor, torch.long = np.array, np.int64
        torch.Tensor = torch.LongTensor = np.ndarray
        sys.modules["torch"] = torch
    spec = importlib.util.spec_from_file_location("oc_tokenizer", package("open_clip_torch", "open_clip/tokenizer.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if getattr(sys.modules["torch"], "__spec__", None) is None:
        del sys.modules["torch"]  # transformers looks for the real one
    return module


OC = open_clip_tokenizer()
from transformers import AutoTokenizer, CLIPTokenizerFast, GPT2Tokenizer, GPT2TokenizerFast  # noqa: E402


def dump(path, value, **options):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":"), **options) + "\n", encoding="utf-8")


def lines(name, rows):
    # ASCII escapes: a NUL, a BOM or a line separator inside a string must survive every editor.
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="ascii")
    print(name, len(rows), "rows", len(text), "bytes")


def clip_folder(path, merge_count):
    """vocab.json and merges.txt of the first merges, as Hugging Face's CLIP folders have them."""
    path.mkdir(exist_ok=True)
    bpe = gzip.open(OC.default_bpe()).read().decode("utf-8").split("\n")
    merges = bpe[1:49152 - 256 - 2 + 1][:merge_count]
    vocab = list(OC.bytes_to_unicode().values())
    vocab += [v + "</w>" for v in vocab] + ["".join(m.split()) for m in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    dump(path / "vocab.json", {token: i for i, token in enumerate(vocab)})
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    # The form of openai/clip-vit-large-patch14's own files.
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    special = {role: {"content": token, **plain} for role, token in
               [("bos_token", "<|startoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")]}
    dump(path / "special_tokens_map.json", {**special, "pad_token": "<|endoftext|>"})
    dump(path / "tokenizer_config.json", {**{k: {**v, "__type": "AddedToken"} for k, v in special.items()},
         "pad_token": "<|endoftext|>", "add_prefix_space": False, "errors": "replace", "do_lower_case": True,
         "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    dump(path / "config.json", {"model_type": "clip"})
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert type(tokenizer) is CLIPTokenizerFast, type(tokenizer)
    return tokenizer


def small_open_clip(merge_count):
    """open_clip's tokenizer over fewer merges: its own class, its tables cut."""
    small = OC.SimpleTokenizer()
    merges = list(small.bpe_ranks)[:merge_count]
    vocab = list(OC.bytes_to_unicode().values())
    vocab += [v + "</w>" for v in vocab] + ["".join(m) for m in merges] + ["<start_of_text>", "<end_of_text>"]
    small.encoder = dict(zip(vocab, range(len(vocab))))
    small.bpe_ranks = dict(zip(merges, range(len(merges))))
    return small


def mojibake(text, encoding, times=1):
    for _ in range(times):
        text = text.encode("utf-8").decode(encoding, "replace")
    return text


HAND = [
    "", " ", "\t\n \r\n", "a", "A photo of a cat", "a  photo\tof\na\r\ncat ", "don't DON'T we'll I'd you're I'VE I'm it's '", "''s 's!s !'s",
    "'\u017f it'\u017f", "\u0345", "a\u0345b", "!!\u0345!!", "<start_of_text>", "<end_of_text> x", "x<end_of_text>", "<START_OF_TEXT>", "<\u017ftart_of_text>",
    "!<start_of_text>", "<|startoftext|>", "<|endoftext|>", "a <|endoftext|> b", "a<|endoftext|>b <|startoftext|>", "<|ENDOFTEXT|>", "x<|STARTOFTEXT|>y", "</s>", "<s>", "<pad>",
    "&amp;", "&amp", "&AMP;", "&amp;amp;amp;amp;lt;", "&lt;b&gt;", "<b> &amp; &eacute;", "<b>\n&amp;", "&amp;\n<b>&amp;", "&eacute &eacute; &EACUTE; &notit; &not;it &notin; &notin",
    "&#65; &#65 &#x41; &#x41 &#X41; &#0; &#0x41 &#128; &#x80; &#150; &#xD800; &#xDFFF; &#x110000; &#99999999999999999999; &#1; &#11; &#xFFFE; &#13;",
    "&#; &#x; &; & ;", "&ThickSpace;&NewLine;&Tab;&nbsp;x", "&nbspx &copy2024 &CounterClockwiseContourIntegral; &fjlig; &bne;", "BUNDESSTRA&SZLIG;E &NTILDE; &nTILDE; &SUP3;",
    "AT&T R&D rock&roll Q&A &c. &hearts;&spades", "&macr;\\_(\u30c4)_/&macr;", "&ATILDE;&SUP3;", "&Atilde;&copy;", "&#xc3;&#xa9;", "&LT;p&GT;", "&lt;p&gt; &amp;eacute;",
    "Ã©", "Ã©tÃ©", "cafÃ©", "dÃ©jÃ  vu", "voilÃ  le travail", "Ã la mode", "fÃ cil", "Ã quele Ã quilo Ã s ", "sÃ³", "âœ” No problems", "â€œquotedâ€\x9d", "â€œ like this â€�", "donâ€™t",
    "l’humanitÃ©", "The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t have eyebrows.", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "РїСЂРёРІРµС‚", "ñ Ã± Ã", "Ã", "Â", "Â ", "a Â b", "Â©", "10Â°C", "50Â€", "â€", "â‚¬", "ï»¿BOM",
    "\u00c3\u00a9\u00c0\n", "\u00c3\u00a9\u00c0\u0080x", "\u00c3\u00a9\u00ed\u00a0\u00bd\u00ed\u00b8\u008d", "\u00c3\u00a9\u00ed\u00a0\u00bd\u00ed\u00b8\n", "\u00c3\u00a9\u00ed\n", "\u00c3\u00a9\u00ed\u00a0\u0080",
    "fi ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ ﬀ ĳ Ĳ ŉ ǆ ǅ Ǆ ǉ ǌ ǳ Ǳ", "ＬＯＵＤ　ＮＯＩＳＥＳ", "Ｕﾀｰﾝ ｶﾞ ｷﾞ", "“curly” ‘quotes’ ‚low‛ „low‟ ʼn", "line\u2028sep\u2029par\x85next", "\x1b[36;44mblue\x1b[0m x \x1b[ \x1b[1", "\x1b[\u0661m",
    "\x00", "a\x00b", "\ufeffBOM", "a\ufeffb", "\ufffd", "a\ufffdb", "\ufff9x\ufffa\ufffb\ufffc", "\u206a\u206f", "\u200b\u200c\u200d\u200e\u200f\u2060", "\x01\x02\x1a\x1c\x1d\x1e\x1f\x7f", "a\x1cb a\x0bb a\x0cb", "\x80\x81\x85\x8d\x92\x9f",
    "caf\u0065\u0301", "A\u030a \u212b \u2126 \u212a \u0130 I\u0307", "ΟΔΥΣΣΕΥΣ ΣΑΣ. Σ ΑΣ' ΑΣΑ ΑΣ\u0301Β ΑΣ\u00ad", "ß ẞ ŒUVRE ǅ ﬓ", "İstanbul IĞDIR", "\u1e9e\u0149\u01f0\u0390\u1e96", "\U00010400\U00010428 𝒥ohn ℋ 𝟘𝟙",
    "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣ ©️ 🏴󠁧󠁢󠁷󠁬󠁳󠁿", "مرحبا بالعالم \u202bשלום\u202c", "你好，世界！ 日本語テキスト 한국어 ภาษาไทย हिन्दी தமிழ்", "½ ² ³ ٠١٢ Ⅷ ① 〇 一二三 ৪", "a\u00ada co\u00adop", "\u3000x\u3000", "\u1680\u2000\u200a\u202f\u205f",
    "...!!!???---", "hello, world . It 's n't 'm", "C++ & C#; a_b-c/d\\e", "http://example.com/?a=1&b=2&copy=3", "snake_case CamelCase 3.14159 1,000,000", "#hashtag @user $9.99 100%", "𝓯𝓪𝓷𝓬𝔂", "Z̸̧̢a̴l̶g̷o̵",
    "√© Ä ‚Äô √†", "‚Ä™ ‚Äú", "├⌐ ΓÇÖ", "вЂ™ Р°", "β€™ Ξ±Β°", "ГўВЂВ™s x", "à² à¤¹à¤¿", "Ø§Ù„Ø¹", "×©×œ×•×", "Å\u201aÃ³dÅº", "Äŕ Ă© Ă ", "š × ²³ ×²", "CÃ\u00a1diz Mart\u00c3\u00adn", "\u00e2\u20ac\u201d dash \u00e2\u20ac\u201c", "\ufb01 \ufb02 \u25ca", "¿Qu\u00c3\u00a9? ¡S\u00c3\u00ad!", "Ã¼ber straÃŸe", "ParÃ¡ Â· Ã‰cole", "naÃ¯ve\nfaÃ§ade\nplain", "é Ã© ü", "中 Ã© 文", "ã\x83\x84", "?Ã? Ã\x1a é", "œ Œ. œuvre", "caractÃ¨re spÃ©cial &eacute; <Ã©>",
]


def generated():
    out = []
    words = ["café", "Łódź", "naïve façade", "Ελλάδα", "Привет мир", "日本語", "한국어", "“quotes” — dash…", "piñata ½ €5 ©2020", "ŝaŭ ĉ", "مرحبا", "שלום", "Ünïcödé", "👍 ok", "à la mode", "São Paulo", "Björk", "Dvořák", "Şişli", "\xa0x", "d’Orsay", "mañana!", "Škoda", "Ťažký"]
    for word in words:
        for encoding in ["latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "iso8859_2", "mac_roman", "cp437", "cp1257"]:
            for times in (1, 2):
                bad = mojibake(word, encoding, times)
                out += [bad, f"a painting of {bad} by Ann", bad.replace("\xa0", " "), f"{word} {bad}"]
    names = [n for n in html.entities.html5]
    for name in random.sample(names, 260):
        out += [f"a&{name}b", f"x &{name.rstrip(';')} y", f"&{name.upper()}"]
    # Every block of Unicode, in order and shuffled.
    for start in list(range(0, 0x3100, 0x10)) + list(range(0xA000, 0xAC00, 0x40)) + list(range(0xF900, 0x10000, 0x10)):
        out.append("".join(chr(c) for c in range(start, start + 0x10) if not 0xD800 <= c < 0xE000))
    for start in list(range(0x3100, 0xA000, 0x200)) + list(range(0xAC00, 0xD800, 0x400)) + list(range(0x10000, 0x1FBFF, 0x100)):
        out.append("".join(chr(start + random.randrange(0x40)) for _ in range(8)))
    alphabet = list("aAbzZ019 .,'’\"“&;<#xé ÃÂâ€™œ\xa0\x80\x9d\u0301ßΣσςİıſK–—…ａ。ﬁ�\x1a\n?") + ["&amp;", "Ã©", "â€", "  ", "'s", "<|endoftext|>", "&#", "à", "ð", "\u200d", "👍", "中", "Р", "°"]
    for _ in range(1500):
        out.append("".join(random.choice(alphabet) for _ in range(random.randrange(1, 14))))
    for _ in range(300):
        out.append("".join(chr(c) for c in (random.choice([random.randrange(0x20, 0x250), random.randrange(0x2000, 0x2300), random.randrange(0x370, 0x530)]) for _ in range(random.randrange(1, 12)))))
    # Single-byte soup: likely to look like text in the wrong encoding.
    for encoding in ["latin-1", "cp1252", "cp1251", "cp1253", "mac_roman", "cp437"]:
        for _ in range(60):
            soup = bytes(random.choice([0xC3, 0xC2, 0xE2, 0x80, 0x99, 0x20, 0xA0, 0x61, 0xD0, 0xF0, 0x9F, 0xED, 0xC0, 0x1A, random.randrange(256)]) for _ in range(random.randrange(2, 10)))
            out.append("a " + soup.decode(encoding, "replace") + " b")
    return out


def lists():
    data = package("clip-interrogator", "clip_interrogator/data")
    out = []
    for name in ["artists", "flavors", "mediums", "movements", "negative"]:
        rows = (data / f"{name}.txt").read_text("utf-8", "replace").split("\n")
        odd = [row for row in rows if not row.isascii() or "&" in row or row != row.strip()]
        plain = [row for row in rows if row.isascii()]
        out += odd + random.sample(plain, min(len(plain), 1300 if name == "flavors" else 350))
    return out


def unique(rows):
    """Without what Python 3.11 (Unicode 14) does not know yet: newer tables give it other rules."""
    known = ("".join(c for c in row if unicodedata.category(c) not in ("Cn", "Cs") or ord(c) & 0xFFFE == 0xFFFE) for row in rows)
    return list(dict.fromkeys(known))


def clip_goldens(strings):
    fast = clip_folder(HERE / "clip-vocabulary", 49152 - 256 - 2)
    rows = []
    for text in strings:
        o = OC._tokenizer.encode(text)
        h = fast(text).input_ids[1:-1]
        rows.append({"t": text, "o": o} if o == h else {"t": text, "o": o, "h": h})
    lines("clip.jsonl", rows)
    small = HERE / "clip-small"
    clip_folder(small, 1000).save_pretrained(small)
    (small / "vocab.json").unlink()
    (small / "merges.txt").unlink()
    fast_small = AutoTokenizer.from_pretrained(small)
    slow = small_open_clip(1000)
    lines("clip-small.jsonl", [{"t": t, "o": slow.encode(t), "h": fast_small(t).input_ids[1:-1]} for t in strings[:260]])
    long = ["cat " * 74, "cat " * 75, "cat " * 76, "cat " * 2000, "a, b " * 40, "é" * 200, "x" * 1000, "👍" * 60, "&amp; " * 80, "", "cat", " ".join(strings[400:460])]
    rows = []
    for text in long:
        slots = OC.tokenize([text])[0].tolist()
        rows.append({"t": text, "o": slots, "h": fast(text, truncation=True, max_length=77).input_ids})
    lines("truncated.jsonl", rows)


def opt_goldens(strings):
    from tokenizers import ByteLevelBPETokenizer
    trainer = ByteLevelBPETokenizer(add_prefix_space=False)
    corpus = [s for s in lists() + HAND]
    trainer.train_from_iterator(corpus, vocab_size=1200, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    folder = HERE / "opt-small"
    folder.mkdir(exist_ok=True)
    trainer.save_model(str(folder))
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    added = {k: {"content": v, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True} for k, v in special.items()}
    dump(folder / "special_tokens_map.json", added)
    # The form of facebook/opt's own file.
    dump(folder / "tokenizer_config.json", {"errors": "replace", **{k: {"__type": "AddedToken", **v} for k, v in added.items()},
         "add_prefix_space": False, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"})
    dump(folder / "config.json", {"model_type": "opt", "vocab_size": 1200})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer) is GPT2TokenizerFast, type(tokenizer)
    slow = GPT2Tokenizer.from_pretrained(folder)
    fast_folder = HERE / "opt-small-fast"
    shutil.rmtree(fast_folder, ignore_errors=True)
    tokenizer.save_pretrained(fast_folder)
    for name in ("vocab.json", "merges.txt"):
        (fast_folder / name).unlink()
    again = AutoTokenizer.from_pretrained(fast_folder)
    rows, differ = [], 0
    for text in strings:
        ids = tokenizer(text).input_ids
        assert again(text).input_ids == ids, text
        differ += slow(text).input_ids != ids
        rows.append({"t": text, "ids": ids})
    print("opt: fast and slow tokenizers differ on", differ, "strings (the fast one is the reference)")
    lines("opt.jsonl", rows)
    rows = []
    size = len(tokenizer)
    sequences = [tokenizer(t).input_ids for t in strings[:300]]
    sequences += [[random.randrange(size + 3) for _ in range(random.randrange(12))] for _ in range(200)]
    for extra in ["a cat , sitting on a mat .\n", " it 's ok ! is n't it ?", " they 've , we 're , I 'm ' quoted ' ", "\n", " \x1f a \x1c", "</s></s>x<pad>"]:
        sequences.append(tokenizer(extra).input_ids)
    for ids in sequences:
        kept, skipped = (tokenizer.batch_decode([ids], skip_special_tokens=skip)[0] for skip in (False, True))
        rows.append({"ids": ids, "all": kept, "text": skipped, "strip": skipped.strip()})
    lines("opt-decode.jsonl", rows)


def main():
    for name, pin in PINS.items():
        assert version(name) == pin, (name, version(name))
    made = unique(HAND + generated())
    strings = unique(made + lists())
    print(len(made), "made,", len(strings), "in all")
    clip_goldens(strings)
    opt_goldens(unique(HAND + random.sample(made[len(HAND):], 700) + random.sample(strings[len(made):], 400)))
    dump(HERE / "pins.json", {**PINS, "python": sys.version.split()[0]}, indent=1)


if __name__ == "__main__":
    main()
