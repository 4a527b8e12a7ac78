"""The sources of example sets that read files or packages, by name: those that faults can be planted into."""

from __future__ import annotations

from collections.abc import Callable

from coar_dist.tasks.examples.arrays import digits, npz_images, numpy_arrays, parquet_table
from coar_dist.tasks.examples.folders import celeba, image_folder, waterbirds
from coar_dist.tasks.examples.huggingface import huggingface_images
from coar_dist.tasks.examples.prompts import huggingface_answers
from coar_dist.tasks.examples.repeated import repeated_tokens
from coar_dist.tasks.examples.source import Source
from coar_dist.tasks.examples.templates import greater_than, indirect_objects
from coar_dist.tasks.examples.texts import huggingface_text, text_file
from coar_dist.tasks.examples.torchvision_sets import torchvision_dataset

SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "npz_images": npz_images,
    "numpy_arrays": numpy_arrays,
    "parquet_table": parquet_table,
    "image_folder": image_folder,
    "huggingface_images": huggingface_images,
    "huggingface_text": huggingface_text,
    "huggingface_answers": huggingface_answers,
    "torchvision_dataset": torchvision_dataset,
    "text_file": text_file,
    "repeated_tokens": repeated_tokens,
    "indirect_objects": indirect_objects,
    "greater_than": greater_than,
    "waterbirds": waterbirds,
    "celeba": celeba,
}
