"""Test images among the images of pre-training, from the first command to the last score."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from forks import succeed
from PIL import Image

SIZE = 16
MODEL = ("--model.image_size", SIZE, "--model.patch_size", 4, "--model.hidden_size", 16)
MODEL = (*MODEL, "--model.num_hidden_layers", 1, "--model.num_attention_heads", 2, "--model.intermediate_size", 16)
DECODER = ("--model.decoder_hidden_size", 16, "--model.decoder_num_hidden_layers", 1)
DECODER = (*DECODER, "--model.decoder_num_attention_heads", 2, "--model.decoder_intermediate_size", 16)
TRAIN = ("--train.batch_size", 16, "--train.epochs", 1, "--train.warmup_ratio", 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 train, 12 test and 50 unlabeled images of noise; test images 0, 3 and 7 are also unlabeled images."""
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    tests = random.integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)
    for role, num in (("train", 40), ("test", 12), ("unlabeled", 50)):
        images = tests if role == "test" else random.integers(0, 256, (num, SIZE, SIZE, 3), np.uint8)
        if role == "unlabeled":
            images[:3] = tests[[0, 3, 7]]
        for number, image in enumerate(images):
            name = "unlabeled" if role == "unlabeled" else f"{role}/{'cat' if number < num / 2 else 'dog'}"
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / name / f"{number:02}.png")
    return folder


def read(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.mark.slow
def test_duplicates_are_left_out_counted_and_named_in_the_card(source: Path, tmp_path: Path):
    pretrain = ("--data.source", source, *MODEL, *DECODER, *TRAIN, "--output_dir", tmp_path)
    printed = succeed("scripts/pretrain.py", *pretrain)
    line = "3 images duplicate 3 of the 12 test images (left out)"
    assert line in printed
    record = read(tmp_path / "run.json")
    assert record["num_train_images"] + record["num_held_out_images"] == 40 + 50 - 3
    audit = read(tmp_path / "audit.json")
    assert (audit["num_test_duplicates"], audit["left_out"]) == (3, True)
    assert [(pair["row"], pair["against_row"]) for pair in audit["pairs"]] == [(0, 0), (1, 3), (2, 7)]
    assert line in (tmp_path / "model" / "README.md").read_text()
    for folder in (tmp_path / "model", tmp_path / "model" / "autoencoder"):
        shared = (folder / "audit.json").read_text()
        assert str(source.parent) not in shared
        assert json.loads(shared)["audited"][0]["num_duplicated"] == 3
    # As after a crash: the resumed run sees the same images.
    (tmp_path / "metrics.json").unlink()
    succeed("scripts/pretrain.py", *pretrain)
    assert read(tmp_path / "run.json")["data_fingerprint"] == record["data_fingerprint"]


@pytest.mark.slow
def test_scores_without_the_test_images_that_were_seen_follow_the_model(source: Path, tmp_path: Path):
    data = ("--data.source", source)
    printed = succeed(
        "scripts/pretrain.py",
        *data,
        *MODEL,
        *DECODER,
        *TRAIN,
        "--audit.leave_out",
        "false",
        "--output_dir",
        tmp_path / "mae",
    )
    assert "3 of the 12 test images (kept)" in printed
    tune = (*data, *MODEL, *TRAIN, "--augment.mixup", 0, "--augment.cutmix", 0)
    encoder = tmp_path / "mae" / "model" / "autoencoder"
    printed = succeed("scripts/finetune.py", *tune, "--model.init", encoder, "--output_dir", tmp_path / "tuned")
    assert "pre-training has seen 3 of the 12 test images" in printed
    table = pq.read_table(tmp_path / "tuned" / "predictions.parquet").to_pydict()
    right = np.equal(table["prediction"], table["label"])
    assert np.flatnonzero(table["seen"]).tolist() == [0, 3, 7]
    final = read(tmp_path / "tuned" / "metrics.json")
    assert final["num_seen_test_images"] == 3
    assert final["test/accuracy"] == pytest.approx(right.mean())
    assert final["test_unseen/accuracy"] == pytest.approx(np.delete(right, [0, 3, 7]).mean())
    assert "(kept)" in (tmp_path / "tuned" / "model" / "README.md").read_text()

    evaluate = ("--model", tmp_path / "tuned", *data)
    succeed("scripts/evaluate.py", *evaluate, "--output_dir", tmp_path / "known")
    known = read(tmp_path / "known" / "metrics.json")
    for key in ("num_seen_test_images", "test_unseen/accuracy", "test_unseen/f1", "test_unseen/loss"):
        assert known[key] == pytest.approx(final[key], rel=1e-4)
    (tmp_path / "tuned" / "model" / "audit.json").unlink()
    printed = succeed("scripts/evaluate.py", *evaluate, "--output_dir", tmp_path / "unknown")
    assert "unknown which test images pre-training has seen" in printed
    assert not any("unseen" in key for key in read(tmp_path / "unknown" / "metrics.json"))
    assert set(pq.read_table(tmp_path / "unknown" / "predictions.parquet")["seen"].to_pylist()) == {None}
