"""Write the tokenizers and the term tables.  usage: python build_text.py CACHE MODELS"""
import os
import sys

import bpe
import conditions

CLIP_VOCAB, OPT_VOCAB = 3072, 1536


def main():
    cache, models = sys.argv[1:3]
    p = conditions.load(cache)
    texts = p.texts()
    t = bpe.clip_tokenizer(texts, CLIP_VOCAB, f"{models}/demo-clip")
    print("clip", t.get_vocab_size(), t.encode("A photo of a croissant, by Noto").tokens)
    captions = [c["caption"] + "\n" for c in p.cs]
    t = bpe.opt_tokenizer(captions * 4 + [x + "\n" for x in texts], OPT_VOCAB, f"{models}/demo-blip2")
    print("opt", t.get_vocab_size(), t.encode("a croissant\n").tokens)
    d = f"{models}/demo-vocabulary"
    os.makedirs(d, exist_ok=True)
    lines = {"artists": conditions.ARTISTS, "flavors": [x for x, _ in p.flavors], "mediums": [x for x, _ in p.mediums],
             "movements": [x for x, _ in p.movements], "negative": [x for x, _ in p.negative]}
    for name, ls in lines.items():
        assert len({x.lower() for x in ls}) == len(ls) and all(x.strip() == x and x for x in ls), name
        open(f"{d}/{name}.txt", "w").write("\n".join(ls) + "\n")
        print(name, len(ls))


if __name__ == "__main__":
    main()
