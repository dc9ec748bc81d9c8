"""The mask of an image by a network of export_network.py, with onnxruntime, numpy and PIL alone.

python onnx_predict.py NETWORK.onnx IMAGE MASK.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network, source, target = sys.argv[1:]
session = onnxruntime.InferenceSession(network, providers=onnxruntime.get_available_providers())
about = {
    name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()
}
image = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
small = image.copy()
small.thumbnail((640, 640), Image.Resampling.BICUBIC)  # as in training
image = (np.asarray(small, np.float32) / 255 - np.float32(about["mean"])) / np.float32(about["std"])
(logits,) = session.run(["logits"], {"image": image.transpose(2, 0, 1)[None]})
mask = Image.fromarray(logits[0].argmax(0).astype(np.uint8)).resize(
    image.size, Image.Resampling.NEAREST
)
mask.save(target)
print(*(about["class_names"][i] for i in np.unique(mask)), sep=", ")
