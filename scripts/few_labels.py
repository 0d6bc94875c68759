"""Measure an encoder with few labels: ten folds of the training images, or budgets of 1 to 100 % of the labels.

python scripts/few_labels.py --model runs/pretrain/digits --data.source digits --protocol budgets --scratch true \
    --output_dir runs/few_labels/digits
python scripts/few_labels.py --model runs/pretrain/digits --data.source digits --method knn,linear,finetune \
    --finetune_config configs/finetune/digits.yaml --output_dir runs/few_labels/digits-folds
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_hf import cli
from mae_hf.config import ClassifierConfig, FewLabelsConfig, FinetuneConfig, require
from mae_hf.data.places import check_source
from mae_hf.models.places import FIX_MODEL, SCRATCH, find_model


def main(argv: Sequence[str] | None = None) -> None:
    """Measures as the command line says; what an earlier run has finished is not done again."""
    config = cli.parse(FewLabelsConfig, argv, prog="scripts/few_labels.py")

    find_model(config.model, FIX_MODEL)  # before the imports that take seconds
    check_source(config.data.sources[0])
    recipe = cli.load(FinetuneConfig, config.finetune_config) if config.finetune_config else None
    folder = Path(config.output_dir)
    require(
        not (folder / "config.yaml").exists(), f"{folder} is the folder of another run: choose another --output_dir"
    )

    import numpy as np
    from accelerate import Accelerator

    from mae_hf import figures
    from mae_hf.checkpoint import write_text
    from mae_hf.data.few_labels import describe_few_labels, few_label_rows
    from mae_hf.data.images import load_labelled_images
    from mae_hf.data.sources import load_splits
    from mae_hf.few_labels.finetuning import finetune_config, run_finetuning
    from mae_hf.few_labels.frozen import load_features, measure_probe, weights_digest
    from mae_hf.few_labels.measurements import Results, check_inputs, summarize, table
    from mae_hf.few_labels.picture import few_labels_figure
    from mae_hf.few_labels.protocol import describe_protocol, is_official, label_sets
    from mae_hf.machine import attention_for, use_cpu_well
    from mae_hf.models.classifier import SHAPE_KEYS, build_classifier
    from mae_hf.models.pretrained import image_size_of, open_encoder, read_normalization
    from mae_hf.tracking import environment

    accelerator = Accelerator()
    use_cpu_well(accelerator)
    require(accelerator.num_processes == 1, "few_labels.py runs as one process: start it with --num_processes 1")

    # ---- images: all labelled train images, of which a label set is some rows, and test ----
    mean, std = read_normalization(config.model)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_mean=mean, image_std=std))
    encoder = open_encoder(config.model, attention_for(accelerator))
    image_size = image_size_of(encoder)
    splits = load_splits(config.data, config.data.sources[0])
    images = load_labelled_images(config.data, image_size)
    train = [images["train"]] + ([images["validation"]] if "validation" not in splits else [])
    rows = np.sort(np.concatenate([part.rows for part in train]))
    class_names = images["test"].class_names
    protocol = describe_protocol(config, splits["train"])
    print(f"{protocol}\n{len(rows)} labelled train images; every accuracy is of all {len(images['test'])} test images")

    # ---- what is measured: the encoder, and the same network from random weights ----
    shape = {key: getattr(encoder.config, key) for key in SHAPE_KEYS}
    encoders: dict[str, Any] = {"model": encoder}
    if config.scratch:
        untrained = ClassifierConfig(init=SCRATCH, **shape)
        encoders["scratch"] = build_classifier(untrained, class_names, attention_for(accelerator), seed=0).vit.eval()

    # ---- what is there already ----
    folder.mkdir(parents=True, exist_ok=True)
    fingerprints = " ".join(part.fingerprint for part in images.values())
    inputs = {"protocol": protocol, "data": fingerprints, "weights": weights_digest(encoder)}
    if recipe:
        inputs |= {"recipe": cli.dump(recipe), "min_steps": str(config.min_steps)}
    check_inputs(folder / "inputs.json", inputs)
    results = Results(folder / "results.jsonl")

    # ---- one label set after the other ----
    for arm, model in encoders.items():
        for method in config.methods:
            if method != "finetune":
                file = folder / f"features-{arm}.npz"
                features = load_features(
                    file, accelerator, model, train, images["test"], config.data, config.batch_size
                )
            for label_set in label_sets(config, splits["train"], method):
                line = {"label_set": label_set.name, "fraction": label_set.fraction, "draw": label_set.draw}
                line |= {"labels": describe_few_labels(splits["train"], label_set.data) or "all labels"}
                line |= {"arm": arm, "method": method}
                if method != "finetune":
                    chosen = few_label_rows(splits["train"], rows, label_set.data)
                    measure_probe(results, line, features, chosen, class_names)
                elif not results.has(label_set.name, arm, method, None):
                    assert recipe is not None
                    few = load_labelled_images(label_set.data, image_size, roles=("train",))["train"]
                    init = SCRATCH if arm == "scratch" else config.model
                    place = folder / "runs" / f"{label_set.name}-{arm}"
                    run = finetune_config(recipe, label_set, init, shape, len(few), config.min_steps, place)
                    measured = run_finetuning(Path(__file__).with_name("finetune.py"), run)
                    results.add({**line, "pooling": None, **measured})
                print(f"{arm} {method} {label_set.name}: done", flush=True)

    # ---- mean and standard deviation, as JSON, picture and table ----
    summary = summarize(results.lines)
    about = {"protocol": protocol, "official": is_official(config, splits["train"]), "model": config.model}
    about |= {
        "source": config.data.sources[0],
        "num_test_images": len(images["test"]),
        "environment": environment(accelerator),
    }
    write_text(folder / "summary.json", json.dumps({**about, "results": summary}, indent=2) + "\n")
    figure = few_labels_figure(summary, results.lines, protocol)
    figures.save(figure, folder / "few_labels.png")
    print(
        f"{table(summary)}\nmean ± standard deviation over the label sets, in per cent; {protocol}\nwritten to {folder}"
    )
    accelerator.end_training()


if __name__ == "__main__":
    cli.run(main)
