"""Write the shipped folders: fp16 weights of the better of raw and averaged weights.

usage: python export.py CACHE MODELS clip|blip2 [raw|ema]
Without raw or ema: the one with the better score on the validation of the training
(training artists under unseen augmentation; the held-out artists have no say).
"""
import json
import sys

from safetensors.torch import load_file

cache, models, which = sys.argv[1:4]
if len(sys.argv) > 4:
    kind = sys.argv[4]
else:
    v = json.load(open(f"{cache}/{which}_training.json"))["validation"]
    kind = max(v, key=lambda k: v[k])
folder = f"{models}/demo-{which}"
state = load_file(f"{cache}/{which}_{kind}.safetensors")
vocab = json.load(open(f"{folder}/vocab.json"))
if which == "clip":
    import clip_model
    clip_model.save(state, len(vocab), folder)
else:
    import blip2_model
    blip2_model.save(state, vocab, folder)
print("exported", which, kind, "to", folder)
