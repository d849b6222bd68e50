#!/usr/bin/env python3
"""BERT's tokenizer (BLIP's and GIT's) over a small vocabulary, and what the pinned transformers makes of the texts of opt.jsonl:
the golden files bert-small*/ and bert.jsonl of crates/text.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/text/make_bert.py
"""
import json, random, shutil
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast

HERE = Path(__file__).resolve().parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
texts = [json.loads(line)["t"] for line in (HERE / "opt.jsonl").open()]

# A vocabulary learnt from the texts themselves, small enough for unknown words and long splits.
learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
learner.normalizer, learner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
learner.train_from_iterator(texts[::2], trainers.WordPieceTrainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False, limit_alphabet=150))
vocabulary = sorted(learner.get_vocab(), key=learner.get_vocab().get)

rows = []
for name, config in (("bert-small", {}), ("bert-small-cased", dict(do_lower_case=False, tokenize_chinese_chars=False, strip_accents=True))):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in vocabulary))
    # The folder as old checkpoints are: no tokenizer.json.
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(config, model_max_length=512, tokenizer_class="BertTokenizer"), indent=2) + "\n")
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    numbers = random.Random(1)
    for text in texts:
        ids = tokenizer(text).input_ids
        said = [numbers.randrange(len(vocabulary)) for _ in range(numbers.randrange(12))]
        rows.append(dict(f=name, t=text, ids=ids, said=said, strip=tokenizer.decode(said, skip_special_tokens=True).strip()))
with (HERE / "bert.jsonl").open("w") as file:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
print(len(rows), "rows,", len(vocabulary), "tokens")
