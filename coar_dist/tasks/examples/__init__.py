"""Sources of example sets by name. A user's own is ``task.examples.source=my_module:load``, giving an ``ExampleSet``.

To add one, write a function of plain arguments that returns an ``ExampleSet``, or an ``IndexedSource`` where a subset
should be chosen before anything is loaded, and name it in ``EXAMPLES``.
"""

from __future__ import annotations

from collections.abc import Callable

from coar_dist.tasks.examples.arrays import digits, npz_images, numpy_arrays, parquet_table
from coar_dist.tasks.examples.folders import celeba, image_folder, waterbirds
from coar_dist.tasks.examples.huggingface import huggingface_images
from coar_dist.tasks.examples.language import huggingface_answers, huggingface_text, text_file
from coar_dist.tasks.examples.planted import with_cue, with_text, with_trigger
from coar_dist.tasks.examples.source import Source
from coar_dist.tasks.examples.torchvision_sets import torchvision_dataset

EXAMPLES: dict[str, Callable[..., Source]] = {
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
    "waterbirds": waterbirds,
    "celeba": celeba,
    "with_trigger": with_trigger,
    "with_cue": with_cue,
    "with_text": with_text,
}

__all__ = ["EXAMPLES", "digits", "npz_images"]
