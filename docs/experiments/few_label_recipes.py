"""Experiment: fine-tuning recipes with 100 to 5,000 labels, beside the linear probe of the same encoder.

python docs/experiments/few_label_recipes.py OUTPUT.jsonl ENCODER SOURCE LABELS DRAWS RECIPE [RECIPE...]

LABELS is a number of labels of SOURCE's train split, of which a tenth chooses the epoch; DRAWS random sets of them are
used. A recipe is `probe`, or a quoted part of a command line of scripts/finetune.py, such as
"--config configs/finetune/few_labels.yaml --train.min_steps 100". Every result is one line of OUTPUT.jsonl. The same
command continues after the last line.

`unused` is the accuracy on 2,000 train images whose labels nothing has used: recipes are chosen by it. With all labels
there are none, and the validation images choose. `test` is only reported.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from mae_hf.config import parse
from mae_hf.config.runs import FinetuneConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images, thin_out
from mae_hf.evaluation.inference import POOLINGS, class_probabilities, infer, pooled_features
from mae_hf.evaluation.probes import Labelled, linear_probe
from mae_hf.models.io import SHAPE_KEYS, image_size_of, open_classifier, open_encoder, prepared_as
from mae_hf.training.hardware import use_cpu_well


def main() -> None:
    """Measure every recipe on every draw, and add the results to the file."""
    output, encoder, source, labels, draws, *recipes = sys.argv[1:]
    file, accelerator = Path(output), Accelerator()
    use_cpu_well(accelerator)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for draw in range(int(draws)):
        for recipe in recipes:
            key = {"labels": int(labels), "draw": draw, "recipe": recipe}
            if any(key.items() <= line.items() for line in done):
                continue
            started = time.perf_counter()
            words = shlex.split(recipe) if recipe != "probe" else []
            found = measure(accelerator, encoder, source, int(labels), draw, words)
            line = key | found | {"seconds": round(time.perf_counter() - started, 1)}
            with file.open("a") as target:
                target.write(json.dumps(line) + "\n")
            print(line, flush=True)


def measure(
    accelerator: Accelerator, name: str, source: str, num_labels: int, draw: int, recipe: list[str]
) -> dict[str, Any]:
    """Return the accuracies of a recipe, or of the linear probe if the recipe is empty, on one draw of labels."""
    model = open_encoder(name, "sdpa")
    every = parse.read_command(FinetuneConfig, [f"--data.source={source}", "--data.label_fraction=1"], prog="measure")
    every = replace(every, data=prepared_as(name, every.data))
    images = load_labelled_images(every.data, image_size_of(model))
    whole = ImageSet([*images["train"].parts, *images["validation"].parts])
    data = replace(every.data, label_fraction=num_labels / len(whole), label_seed=draw)
    images = load_labelled_images(data, image_size_of(model))
    used = np.concatenate([images["train"].split_rows, images["validation"].split_rows])
    store = images["train"].parts[0][0]
    unused = np.flatnonzero(~np.isin(store.rows, used))
    if len(unused):
        images["unused"] = thin_out(ImageSet([(store, unused)]), 2_000)

    if not recipe:
        learnt = ImageSet([(store, np.flatnonzero(np.isin(store.rows, used)))])
        labelled = infer(accelerator, pooled_features, model, learnt, data, 256)
        found: dict[str, Any] = {"num_labels": len(learnt)}
        for role in {"unused", "test"} & images.keys():
            features = infer(accelerator, pooled_features, model, images[role], data, 256)
            for number, pooling in enumerate(POOLINGS):
                known = Labelled(labelled[:, number], learnt.labels)
                probe = linear_probe(known, features[:, number], len(whole.class_names))
                right = probe.probabilities.argmax(axis=1) == images[role].labels
                found |= {f"{role} {pooling}": round(100 * float(right.mean()), 2), f"C {pooling}": probe.settings["C"]}
        return found

    with tempfile.TemporaryDirectory() as folder:
        words = [f"--model.{key}={getattr(model.config, key)}" for key in SHAPE_KEYS]
        words += [f"--data.source={source}", f"--data.label_fraction={data.label_fraction}", f"--model.init={name}"]
        words += [f"--data.label_seed={draw}", f"--train.seed={draw}", f"--output_dir={folder}/run"]
        words += [f"--data.image_mean={list(data.image_mean)}"]
        words += [f"--data.image_std={list(data.image_std)}"]
        subprocess.run([sys.executable, "-m", "mae_hf", "finetune", *recipe, *words], check=True, capture_output=True)
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
        found = {"num_labels": len(used), "epoch": metrics["best_epoch"]}
        found |= {"test": 100 * metrics["test/accuracy"], "validation": 100 * metrics["eval/accuracy"]}
        if "unused" in images:
            classifier = open_classifier(f"{folder}/run", "sdpa")
            probabilities = infer(accelerator, class_probabilities, classifier, images["unused"], data, 256)
            found["unused"] = 100 * float((probabilities.argmax(axis=1) == images["unused"].labels).mean())
    return {key: round(value, 2) for key, value in found.items()}


if __name__ == "__main__":
    main()
