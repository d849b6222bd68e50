"""`zero_shot` as it is commonly served: transformers' CLIP in Triton's Python backend. The same inputs and outputs, the
same answers; no batching, as labels differ from request to request."""
import io
import os
import sys

# The stub has its own idea of PYTHONPATH.
sys.path.insert(0, os.environ["PEER_PACKAGES"])

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from PIL import Image
from transformers import CLIPModel, CLIPProcessor


class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(int(os.environ.get("PEER_THREADS", "2")))
        folder = os.environ["PEER_CLIP"]
        self.model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.processor = CLIPProcessor.from_pretrained(folder)

    @torch.no_grad()
    def answer(self, request):
        image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)[0]
        labels = [label.decode() for label in pb_utils.get_input_tensor_by_name(request, "labels").as_numpy().reshape(-1)]
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        inputs = self.processor(text=labels, images=picture, return_tensors="pt", padding=True, truncation=True)
        logits = self.model(**inputs).logits_per_image
        similarity = logits / self.model.logit_scale.exp()
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("label", np.array([[label.encode() for label in labels]], dtype=object)),
            pb_utils.Tensor("probability", logits.softmax(-1).numpy()),
            pb_utils.Tensor("similarity", similarity.numpy())])

    def execute(self, requests):
        return [self.answer(request) for request in requests]
