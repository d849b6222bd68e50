"""Train the two byte-level BPE tokenizers of the demo models.

clip_tokenizer: CLIP's format (lower-case, "</w>" ends a word, specials last, end token = highest id).
opt_tokenizer:  GPT-2's format as OPT uses it (specials first, "</s>" put in front of every text).
"""
import collections
import json
import os
import re

import regex
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE


def byte_chars():
    """The printable stand-in character of every byte (GPT-2's table), in CLIP's order."""
    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    cs, n = bs[:], 0
    for b in range(256):
        if b not in bs:
            bs.append(b)
            cs.append(256 + n)
            n += 1
    return {b: chr(c) for b, c in zip(bs, cs)}


BYTES = byte_chars()


def learn(words, n):
    """words: {tuple of symbols: count} -> the n most useful merges, in order."""
    words = [[list(w), c] for w, c in words.items()]
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, (w, c) in enumerate(words):
        for p in zip(w, w[1:]):
            pairs[p] += c
            where[p].add(i)
    merges = []
    while len(merges) < n:
        best = max(pairs.items(), key=lambda x: (x[1], x[0]), default=(None, 0))
        if best[1] < 1:
            break
        a, b = best[0]
        merges.append((a, b))
        for i in list(where[a, b]):
            w, c = words[i]
            for p in zip(w, w[1:]):
                pairs[p] -= c
                where[p].discard(i)
            out, k = [], 0
            while k < len(w):
                if k + 1 < len(w) and (w[k], w[k + 1]) == (a, b):
                    out.append(a + b)
                    k += 2
                else:
                    out.append(w[k])
                    k += 1
            words[i][0] = out
            for p in zip(out, out[1:]):
                pairs[p] += c
                where[p].add(i)
        del pairs[a, b]
    return merges


CLIP_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
GPT_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def counts(texts, split, suffix):
    words = collections.Counter()
    for t in texts:
        for w in regex.findall(split, t):
            sym = [BYTES[b] for b in w.encode()]
            sym[-1] += suffix
            words[tuple(sym)] += 1
    return words


def save_vocab(folder, vocab, merges):
    os.makedirs(folder, exist_ok=True)
    json.dump(vocab, open(f"{folder}/vocab.json", "w"), ensure_ascii=False)
    with open(f"{folder}/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def save_json(tok, folder):
    """tokenizer.json with merges as "a b" lines, which old and new versions of the library read."""
    d = json.loads(tok.to_str())
    d["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in d["model"]["merges"]]
    json.dump(d, open(f"{folder}/tokenizer.json", "w"), ensure_ascii=False)


def clip_tokenizer(texts, size, folder):
    sos, eos = "<|startoftext|>", "<|endoftext|>"
    base = list(BYTES.values())
    base += [c + "</w>" for c in base]
    texts = [re.sub(r"\s+", " ", t).strip().lower() for t in texts]
    merges = learn(counts(texts, CLIP_SPLIT, "</w>"), size - len(base) - 2)
    vocab = {t: i for i, t in enumerate(dict.fromkeys(base + [a + b for a, b in merges] + [sos, eos]))}
    save_vocab(folder, vocab, merges)
    tok = Tokenizer(BPE(vocab, merges, unk_token=eos, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tok.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CLIP_SPLIT), "removed", invert=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.post_processor = processors.RobertaProcessing((eos, vocab[eos]), (sos, vocab[sos]), trim_offsets=False, add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=n, special=True) for t, n in ((sos, True), (eos, False))])
    save_json(tok, folder)
    special = {"bos_token": sos, "eos_token": eos, "pad_token": eos, "unk_token": eos}
    json.dump(special, open(f"{folder}/special_tokens_map.json", "w"), indent=2)
    json.dump(dict(special, add_prefix_space=False, clean_up_tokenization_spaces=False, do_lower_case=True, errors="replace",
                   model_max_length=77, tokenizer_class="CLIPTokenizer"), open(f"{folder}/tokenizer_config.json", "w"), indent=2)
    return tok


def opt_tokenizer(texts, size, folder):
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    base = list(BYTES.values())
    merges = learn(counts(texts, GPT_SPLIT, ""), size - len(base) - len(special) - 1)
    vocab = {t: i for i, t in enumerate(special + base + [a + b for a, b in merges] + ["<image>"])}
    save_vocab(folder, vocab, merges)
    tok = Tokenizer(BPE(vocab, merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.TemplateProcessing("</s> $A", "</s> $A </s> $B", [("</s>", vocab["</s>"])])
    tok.add_special_tokens([AddedToken(t, normalized=t == "</s>", special=True) for t in special + ["<image>"]])
    save_json(tok, folder)
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    json.dump(names, open(f"{folder}/special_tokens_map.json", "w"), indent=2)
    json.dump(dict(names, add_bos_token=True, add_prefix_space=False, errors="replace", model_max_length=128, clean_up_tokenization_spaces=False,
                   tokenizer_class="GPT2Tokenizer",
                   added_tokens_decoder={str(vocab[t]): dict(content=t, lstrip=False, normalized=t == "</s>", rstrip=False, single_word=False, special=True)
                                         for t in special + ["<image>"]}),
              open(f"{folder}/tokenizer_config.json", "w"), indent=2)
    return tok
