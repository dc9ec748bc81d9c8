"""The mask of an image by a network of export_network.py, with onnxruntime, numpy and PIL alone.

python onnx_predict.py NETWORK.onnx IMAGE MASK.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MAX_SIDE = 640  # pixels, as in training

network_path, image_path, mask_path = sys.argv[1:]
session = onnxruntime.InferenceSession(
    network_path, providers=onnxruntime.get_available_providers()
)
metadata = session.get_modelmeta().custom_metadata_map
class_names = json.loads(metadata["class_names"])
mean = np.float32(json.loads(metadata["mean"]))
std = np.float32(json.loads(metadata["std"]))

image = ImageOps.exif_transpose(Image.open(image_path)).convert("RGB")
small = image.copy()
small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
pixels = np.asarray(small, np.float32) / 255  # (H, W, 3) in [0, 1]
pixels = (pixels - mean) / std
batch = pixels.transpose(2, 0, 1)[None]  # (1, 3, H, W)

(logits,) = session.run(["logits"], {"image": batch})  # (1, K, H, W)
class_ids = logits[0].argmax(0).astype(np.uint8)
mask = Image.fromarray(class_ids).resize(image.size, Image.Resampling.NEAREST)
mask.save(mask_path)
print(*(class_names[class_id] for class_id in np.unique(mask)), sep=", ")
