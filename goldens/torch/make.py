"""Makes the goldens of the reader of `torch.save` files.

    goldens/setup && .imprompt/goldens-venv/bin/python goldens/torch/make.py

Writes
* mixed.bin and mixed.safetensors: one dictionary, as torch.save writes it and, contiguous, as the
  safetensors package does: every type, shared and offset storages, a transposed view, a parameter;
* gelu_f16/ and sharded_bf16/: the models of goldens/clip of those names with their weights as
  pytorch_model.bin, whole and in shards;
* old_format.bin: the format of PyTorch before 1.6;
* program.bin: a TorchScript program;
* hostile.bin: a file whose pickle asks for os.system.
"""

import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
CLIP = HERE.parent / "clip"


class Command:
    def __reduce__(self):
        import os

        return os.system, ("true",)


def mixed():
    torch.manual_seed(7)
    base = torch.randn(6, 4)
    state = OrderedDict(
        f32=base,
        tied=base,
        rows=base[2:5],
        one_row=base[3:4],
        transposed=base.t(),
        column=base[:, 1],
        f16=torch.randn(3, 5).half(),
        bf16=torch.randn(7).bfloat16(),
        f64=torch.randn(2, 2).double(),
        i64=torch.arange(9).expand((1, -1)),
        i32=torch.arange(-3, 3, dtype=torch.int32),
        i16=torch.arange(4, dtype=torch.int16),
        i8=torch.arange(-4, 4, dtype=torch.int8),
        u8=torch.arange(5, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        repeated=torch.tensor([1.0, 2.0]).expand(3, 2),
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
    )
    # As a module's state dict has it.
    state._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    torch.save(state, HERE / "mixed.bin")
    contiguous = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    pins = {"torch": torch.__version__, "safetensors": safetensors.__version__}
    save_file(contiguous, HERE / "mixed.safetensors", pins)


def models():
    for name in ["gelu_f16", "sharded_bf16"]:
        source, target = CLIP / name, HERE / name
        target.mkdir(exist_ok=True)
        shutil.copy(source / "config.json", target)
        for file in source.glob("*.safetensors"):
            bin_name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
            torch.save(load_file(file), target / bin_name)
        index = source / "model.safetensors.index.json"
        if index.exists():
            text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            (target / "pytorch_model.bin.index.json").write_text(text)


def refused():
    layer = torch.nn.Linear(2, 2)
    torch.save(layer.state_dict(), HERE / "old_format.bin", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.trace(layer, torch.zeros(1, 2)), str(HERE / "program.bin"))
    torch.save({"weight": torch.zeros(2), "command": Command()}, HERE / "hostile.bin")


if __name__ == "__main__":
    mixed()
    models()
    refused()
    for path in sorted(HERE.rglob("*.bin")):
        print(path.relative_to(HERE), path.stat().st_size, zipfile.is_zipfile(path))
