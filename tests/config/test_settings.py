"""The config checks itself: every message, every derived number, and help for every field that something reads."""

import ast
import dataclasses
import itertools
import math
import re
import typing
from pathlib import Path

import docstring_parser
import pytest

from mae_hf.config.augment import AugmentConfig, CropConfig
from mae_hf.config.commands import (
    EvaluateConfig,
    FewLabelsConfig,
    FinetuneConfig,
    PrepareConfig,
    PretrainConfig,
    ReconstructConfig,
)
from mae_hf.config.data import DataConfig
from mae_hf.config.hub import HubConfig
from mae_hf.config.model import ClassifierConfig, EncoderConfig, MAEConfig
from mae_hf.config.train import FinetuneTrainConfig, PretrainTrainConfig, TrainConfig
from mae_hf.errors import ConfigError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    PretrainConfig,
    FinetuneConfig,
    PrepareConfig,
    EvaluateConfig,
    FewLabelsConfig,
    ReconstructConfig,
)


def _sections(config_class: type) -> set[type]:
    """The class and those of its sections."""
    hints = typing.get_type_hints(config_class)
    return {config_class, *(hint for hint in hints.values() if dataclasses.is_dataclass(hint))}


CLASSES = sorted({section for command in COMMANDS for section in _sections(command)}, key=lambda cls: cls.__name__)

FEW = {"model": "m", "output_dir": "o"}
STREAMED = "data.streaming is for scripts/pretrain.py.*leave it out (--data.streaming false)"
NOT_STREAMED = {
    FinetuneConfig: {},
    PrepareConfig: {},
    EvaluateConfig: FEW,
    FewLabelsConfig: FEW,
    ReconstructConfig: {"model": "m", "output": "o.png"},
}
WRONG = [  # class, what is wrong, and what the message says: value seen, what is allowed, the flag
    (DataConfig, {"fold": 10}, "fold 10 is not one of the 10 folds: choose 0 to 9 (--data.fold)"),
    (DataConfig, {"fold": -1}, "fold -1 .*--data.fold"),
    (DataConfig, {"label_fraction": 0.0}, "label_fraction 0.0 .*such as 0.1, or 1 for all (--data.label_fraction)"),
    (DataConfig, {"label_fraction": 1.5}, "label_fraction 1.5 .*--data.label_fraction"),
    (DataConfig, {"fold": 1, "label_fraction": 0.5}, "fold 1 and label_fraction 0.5 both .*choose one"),
    (DataConfig, {"fold": 1, "label_fraction": 1.0}, "fold 1 and label_fraction 1.0 both .*choose one"),
    (DataConfig, {"label_seed": -1}, "label_seed -1 .*--data.label_seed"),
    (DataConfig, {"source": []}, "data.source is empty: name at least one source (--data.source digits)"),
    (
        DataConfig,
        {"validation_fraction": 0.0},
        "validation_fraction 0.0 .*between 0 and 1.*--data.validation_fraction",
    ),
    (
        DataConfig,
        {"validation_fraction": 1.0},
        "validation_fraction 1.0 .*between 0 and 1.*--data.validation_fraction",
    ),
    (DataConfig, {"test_fraction": 1.0}, "test_fraction 1.0 .*choose 0 .* below 1 (--data.test_fraction)"),
    (DataConfig, {"test_fraction": -0.1}, "test_fraction -0.1 .*choose 0 .* below 1 (--data.test_fraction)"),
    (DataConfig, {"image_std": (0.2, 0.0, 0.2)}, "image_std [0.2, 0.0, 0.2] .*above 0.*--data.image_std"),
    (DataConfig, {"split_seed": -1}, "split_seed -1 .*from 0 to 4294967295 (--data.split_seed)"),
    (DataConfig, {"stream_readers": 0}, "stream_readers 0 is not above 0.*--data.stream_readers"),
    (DataConfig, {"stream_held_out": 0}, "stream_held_out 0 is not above 0.*--data.stream_held_out"),
    (
        DataConfig,
        {"stream_buffer": 7},
        "stream_buffer 7 has no image for each of the 8 readers.*--data.stream_buffer",
    ),
    (
        EncoderConfig,
        {"patch_size": 10},
        "patch_size 10 does not divide image_size 96: choose 2, 3, .*--model.patch_size",
    ),
    (
        EncoderConfig,
        {"patch_size": 0},
        "patch_size 0 does not divide image_size 96: choose 2, 3, .*--model.patch_size",
    ),
    (EncoderConfig, {"image_size": 97}, "image_size 97 cannot be cut .*such as 96 (--model.image_size)"),
    (EncoderConfig, {"image_size": 0}, "image_size 0 is not above 0.*--model.image_size"),
    (EncoderConfig, {"hidden_size": -4}, "hidden_size -4 is not above 0.*--model.hidden_size"),
    (EncoderConfig, {"hidden_size": 770}, "hidden_size 770 .*multiple of 4.*choose 768 or 772 (--model.hidden_size)"),
    (EncoderConfig, {"num_hidden_layers": 0}, "num_hidden_layers 0 is not above 0.*--model.num_hidden_layers"),
    (EncoderConfig, {"intermediate_size": 0}, "intermediate_size 0 is not above 0.*--model.intermediate_size"),
    (
        EncoderConfig,
        {"hidden_size": 20, "num_attention_heads": 3},
        "num_attention_heads 3 .*hidden_size 20: choose one of 1, 2, 4, 5, 10, 20 (--model.num_attention_heads)",
    ),
    (
        EncoderConfig,
        {"num_attention_heads": 0},
        "num_attention_heads 0 .*one of 1, 2, 3, .*--model.num_attention_heads",
    ),
    (MAEConfig, {"decoder_hidden_size": 0}, "decoder_hidden_size 0 is not above 0.*--model.decoder_hidden_size"),
    (MAEConfig, {"decoder_hidden_size": 6}, "decoder_hidden_size 6 .*choose 4 or 8 (--model.decoder_hidden_size)"),
    (MAEConfig, {"decoder_hidden_size": 2}, "decoder_hidden_size 2 .*choose 4 or 4 (--model.decoder_hidden_size)"),
    (
        MAEConfig,
        {"decoder_num_attention_heads": 7},
        "decoder_num_attention_heads 7 .*--model.decoder_num_attention_heads",
    ),
    (
        MAEConfig,
        {"decoder_num_hidden_layers": -1},
        "decoder_num_hidden_layers -1 .*--model.decoder_num_hidden_layers",
    ),
    (MAEConfig, {"decoder_intermediate_size": 0}, "decoder_intermediate_size 0 .*--model.decoder_intermediate_size"),
    (MAEConfig, {"mask_ratio": 1.0}, "mask_ratio 1.0 .*144 patches.*such as 0.75 (--model.mask_ratio)"),
    (MAEConfig, {"mask_ratio": 0.0}, "mask_ratio 0.0 .*144 patches.*such as 0.75 (--model.mask_ratio)"),
    (MAEConfig, {"mask_ratio": 0.999}, "mask_ratio 0.999 .*--model.mask_ratio"),
    (MAEConfig, {"decode_ratio": 0.0}, "decode_ratio 0.0 .*choose 1 .*0.5 for half of them (--model.decode_ratio)"),
    (MAEConfig, {"decode_ratio": 1.5}, "decode_ratio 1.5 .*--model.decode_ratio"),
    (MAEConfig, {"mask_ratio": math.nan}, "mask_ratio nan .*--model.mask_ratio"),
    (ClassifierConfig, {"drop_path": 1.0}, "drop_path 1.0 .*choose 0 .*or 0.1 (--model.drop_path)"),
    (ClassifierConfig, {"patch_size": 7}, "patch_size 7 does not divide image_size 96.*--model.patch_size"),
    (CropConfig, {"crop_scale": (0.0, 1.0)}, "crop_scale [0.0, 1.0] .*such as [0.2, 1.0] (--augment.crop_scale)"),
    (CropConfig, {"crop_scale": (0.9, 0.5)}, "crop_scale [0.9, 0.5] .*such as [0.2, 1.0] (--augment.crop_scale)"),
    (AugmentConfig, {"crop_scale": (0.5, 1.5)}, "crop_scale [0.5, 1.5] .*--augment.crop_scale"),
    (AugmentConfig, {"rand_augment_ops": -1}, "rand_augment_ops -1.*0 or more.*--augment.rand_augment_ops"),
    (
        AugmentConfig,
        {"rand_augment_magnitude": 11.0},
        "rand_augment_magnitude 11.0: .*0 to 10.*--augment.rand_augment_mag",
    ),
    (AugmentConfig, {"mixup": -0.1}, "mixup -0.1, .*choose 0 (off) or a positive alpha (--augment.mixup"),
    (AugmentConfig, {"cutmix": -0.1}, "cutmix -0.1: choose 0 (off) or a positive alpha .*--augment.cutmix"),
    (AugmentConfig, {"label_smoothing": 1.0}, "label_smoothing 1.0 .*choose 0 or 0.1 (--augment.label_smoothing)"),
    *(
        (
            AugmentConfig,
            {"erase_probability": value},
            f"erase_probability {value} .*choose 0 (off) to 1, such as 0.25 (--augment.erase_probability)",
        )
        for value in (-0.1, 1.5, math.nan)
    ),
    *(
        (TrainConfig, {name: value}, f"{name} {value} is not above 0: choose a positive number (--train.{name})")
        for name, value in {
            "batch_size": 0,
            "per_device_batch_size": 0,
            "epochs": 0.0,
            "base_lr": -1e-3,
            "max_grad_norm": 0.0,
            "log_every_steps": 0,
            "eval_every_epochs": 0.0,
            "save_every_epochs": math.inf,
        }.items()
    ),
    (TrainConfig, {"keep_checkpoints": 1}, "keep_checkpoints 1 .*choose 2 or more (--train.keep_checkpoints)"),
    (TrainConfig, {"base_lr": math.nan}, "base_lr nan is not above 0"),
    (TrainConfig, {"warmup_ratio": 1.0}, "warmup_ratio 1.0 .*choose 0 .*below 1.*--train.warmup_ratio"),
    (TrainConfig, {"warmup_ratio": -0.1}, "warmup_ratio -0.1 .*--train.warmup_ratio"),
    (TrainConfig, {"adam_beta2": 1.0}, "adam_beta2 1.0 .*0.95 .*0.999 .*--train.adam_beta2"),
    (TrainConfig, {"weight_decay": -0.1}, "weight_decay -0.1 is negative: choose 0 or more (--train.weight_decay)"),
    (TrainConfig, {"seed": -1}, "seed -1 .*from 0 to 4294967295 (--train.seed)"),
    (TrainConfig, {"seed": 2**32}, "seed 4294967296 .*--train.seed"),
    (PretrainTrainConfig, {"figure_every_epochs": 0.0}, "figure_every_epochs 0.0 .*--train.figure_every_epochs"),
    (PretrainTrainConfig, {"probe_every_epochs": -1.0}, "probe_every_epochs -1.0 .*0 (never).*--train.probe_every"),
    (PretrainConfig, {"data": DataConfig(fold=1)}, "does not use: .*scripts/finetune.py .*--data.fold null"),
    (PretrainConfig, {"data": DataConfig(label_fraction=0.1)}, "does not use: .*--data.label_fraction null"),
    (
        PretrainConfig,
        {"data": DataConfig(streaming=True, stream_readers=7)},
        "batch_size 512 cannot be shared out to 7 readers .* multiple of 7 .*--data.stream_readers",
    ),
    *((cls, {**fields, "data": DataConfig(streaming=True)}, STREAMED) for cls, fields in NOT_STREAMED.items()),
    (FinetuneTrainConfig, {"layer_decay": 0.0}, "layer_decay 0.0 .*choose 0.65 to 0.9, or 1 .*--train.layer_decay"),
    (FinetuneTrainConfig, {"layer_decay": 1.1}, "layer_decay 1.1 .*--train.layer_decay"),
    (HubConfig, {"push": True}, "hub.push needs a repository.*--hub.repo_id user/name"),
    (
        FinetuneConfig,
        {"data": DataConfig(source=["a", "b"])},
        "data.source names 2 sources.*takes one.*--data.source",
    ),
    (PrepareConfig, {"image_size": 0}, "image_size 0 is not above 0: choose 96, or 32 for digits (--image_size)"),
    (
        EvaluateConfig,
        {"model": "m", "output_dir": "o", "probe": "knn,svm"},
        "probe svm is unknown: choose among knn, linear, head, rank .*--probe",
    ),
    (EvaluateConfig, {"model": "m", "output_dir": "o", "batch_size": 0}, "batch_size 0 .*(--batch_size)"),
    (FewLabelsConfig, {**FEW, "method": "knn,svm"}, "method svm is unknown: choose among knn, linear, finetune"),
    (FewLabelsConfig, {**FEW, "method": "finetune"}, "needs a recipe: .*--finetune_config configs/finetune/digits"),
    (FewLabelsConfig, {**FEW, "draws": 0}, "draws 0 is not above 0.*--draws"),
    (FewLabelsConfig, {**FEW, "min_steps": 0}, "min_steps 0 is not above 0.*--min_steps"),
    (FewLabelsConfig, {**FEW, "batch_size": 0}, "batch_size 0 is not above 0.*--batch_size"),
    (
        FewLabelsConfig,
        {**FEW, "data": DataConfig(fold=0)},
        "what this command varies: .*--protocol folds or budgets",
    ),
    (FewLabelsConfig, {**FEW, "data": DataConfig(source=["a", "b"])}, "names 2 sources.*--data.source"),
    (ReconstructConfig, {"model": "m", "output": "o.png", "num_images": 0}, "num_images 0 .*(--num_images)"),
    (ReconstructConfig, {"model": "m", "output": "o.jpg"}, "output o.jpg .*ending .png (--output)"),
]


@pytest.mark.parametrize(
    ("config_class", "fields", "message"), WRONG, ids=lambda value: re.sub(r"\W+", "_", str(value))
)
def test_a_wrong_value_is_named_with_what_is_allowed_and_the_flag(config_class, fields, message):
    with pytest.raises(ConfigError) as caught:
        config_class(**fields)
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_class_that_checks_itself_is_in_the_table():
    assert {cls for cls in CLASSES if "__post_init__" in vars(cls)} <= {cls for cls, _, _ in WRONG}


def test_patch_sizes_offered_are_those_that_work():
    with pytest.raises(ConfigError) as caught:
        EncoderConfig(patch_size=10)
    offered = [int(word) for word in re.findall(r"\d+", str(caught.value).split("choose")[1])]
    assert offered == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    assert [EncoderConfig(patch_size=size).patch_size for size in offered] == offered


@pytest.mark.parametrize(
    ("image_size", "patch_size", "mask_ratio", "num_patches", "num_visible"),
    [
        (96, 8, 0.75, 144, 36),
        (96, 16, 0.75, 36, 9),
        (32, 4, 0.75, 64, 16),
        (96, 12, 0.6, 64, 25),
        (224, 16, 0.75, 196, 49),
    ],
)
def test_patches_and_visible_patches(image_size, patch_size, mask_ratio, num_patches, num_visible):
    model = MAEConfig(image_size=image_size, patch_size=patch_size, mask_ratio=mask_ratio)
    assert (model.num_patches, model.num_visible) == (num_patches, num_visible)


@pytest.mark.parametrize(
    ("base_lr", "batch_size", "learning_rate"), [(1.5e-4, 4096, 2.4e-3), (1.5e-4, 512, 3e-4), (1e-3, 128, 5e-4)]
)
def test_the_learning_rate_grows_with_the_global_batch(base_lr, batch_size, learning_rate):
    train = TrainConfig(base_lr=base_lr, batch_size=batch_size)
    assert train.learning_rate == pytest.approx(learning_rate)


PLANS = [  # batch, per device, images, processes -> steps an epoch, accumulation, micro-batch; 10 epochs, 15 % warm-up
    (128, None, 1240, 1, 9, 1, 128),
    (128, 32, 1240, 1, 9, 4, 32),
    (128, None, 1240, 4, 9, 1, 32),
    (128, 16, 1240, 4, 9, 2, 16),
    (64, 64, 64, 1, 1, 1, 64),
    (512, 128, 104500, 4, 204, 1, 128),
]


@pytest.mark.parametrize(("batch", "device", "images", "processes", "steps", "accumulation", "micro"), PLANS)
def test_a_plan_counts_in_optimizer_steps(batch, device, images, processes, steps, accumulation, micro):
    train = TrainConfig(
        batch_size=batch,
        per_device_batch_size=device,
        epochs=10,
        warmup_ratio=0.15,
        eval_every_epochs=0.5,
        save_every_epochs=2,
    )
    assert dataclasses.asdict(train.plan(images, processes)) == {
        "num_images": images,
        "num_processes": processes,
        "steps_per_epoch": steps,
        "total_steps": 10 * steps,
        "warmup_steps": {9: 14, 1: 2, 204: 306}[steps],
        "eval_every_steps": {9: 4, 1: 1, 204: 102}[steps],
        "save_every_steps": 2 * steps,
        "accumulation_steps": accumulation,
        "micro_batch_size": micro,
    }


def test_a_plan_has_at_least_one_step_between_events():
    train = TrainConfig(batch_size=4, epochs=0.01, warmup_ratio=0, eval_every_epochs=0.01, save_every_epochs=0.01)
    plan = train.plan(8, 1)
    assert (plan.total_steps, plan.warmup_steps, plan.eval_every_steps, plan.save_every_steps) == (1, 0, 1, 1)


@pytest.mark.parametrize(
    ("fields", "images", "processes", "message"),
    [
        ({"batch_size": 256}, 240, 1, "batch_size 256 is more than the 240 .*at most 240 (--train.batch_size)"),
        ({"batch_size": 10}, 240, 4, "batch_size 10 .*4 processes: choose a multiple of 4 (--train.batch_size)"),
        (
            {"batch_size": 24, "per_device_batch_size": 5},
            240,
            2,
            "per_device_batch_size 5 .*12 images.*one of 1, 2, 3, 4, 6, 12 (--train.per_device_batch_size)",
        ),
        ({"batch_size": 8, "per_device_batch_size": 16}, 240, 1, "per_device_batch_size 16 .*one of 1, 2, 4, 8 "),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_the_fix(fields, images, processes, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**fields).plan(images, processes)
    assert re.search(".*".join(re.escape(part) for part in message.split(".*")), str(caught.value)), str(caught.value)


def test_the_plan_shows_its_arithmetic():
    train = TrainConfig(batch_size=128, per_device_batch_size=16, epochs=10, warmup_ratio=0.1, base_lr=1e-3)
    assert train.plan(1240, 4).describe(train).splitlines() == [
        "batch           128 = 4 processes x 2 accumulation steps x 16 images",
        "steps per epoch 9 = 1240 images // 128",
        "total steps     90 = 10 epochs x 9",
        "warm-up steps   9 = 0.1 x 90 total steps",
        "learning rate   0.0005 = base_lr 0.001 x 128 / 256, cosine to 0 after the warm-up",
    ]


def test_one_source_and_several_read_alike():
    assert DataConfig(source="digits").sources == ("digits",)
    assert DataConfig(source=["a", "b"]).sources == ("a", "b")


def test_probes_are_split():
    assert EvaluateConfig(model="m", output_dir="o", probe="knn,linear").probes == ("knn", "linear")
    assert EvaluateConfig(model="m", output_dir="o").probes == ()


def test_methods_are_split_and_a_label_set_is_recognised_where_it_is_all_labels_too():
    config = FewLabelsConfig(**FEW, method="knn,finetune", finetune_config="recipe.yaml")
    assert config.methods == ("knn", "finetune")
    assert not DataConfig().has_label_set
    assert DataConfig(fold=0).has_label_set and DataConfig(label_fraction=0.5).has_label_set
    assert DataConfig(label_fraction=1.0).has_label_set
    PretrainConfig(data=DataConfig(label_fraction=1.0))  # it restricts nothing


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda cls: cls.__name__)
def test_configs_are_frozen_and_have_a_first_line_for_the_help(config_class):
    assert config_class.__dataclass_params__.frozen
    assert docstring_parser.parse(config_class.__doc__).short_description.endswith(".") or (
        ":" in config_class.__doc__.splitlines()[0]
    )


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_has_help_and_no_help_is_left_of_a_field_that_is_gone(config_class):
    hints = typing.get_type_hints(config_class)
    values = {name for name, hint in hints.items() if not dataclasses.is_dataclass(hint)}
    helped = set()
    for ancestor in config_class.__mro__[:-1]:
        own = {param.arg_name for param in docstring_parser.parse(ancestor.__doc__).params if param.description}
        assert own <= set(vars(ancestor)["__annotations__"]), f"{ancestor.__name__} explains what it does not have"
        helped |= own
    assert values <= helped


def _names_read(tree: ast.AST) -> set[str]:
    """Attributes that the code reads, and its strings, since some fields are read as `getattr(config, name)`."""
    nodes = list(ast.walk(tree))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    return attributes | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_no_field_is_a_dead_option():
    files = [path for folder in ("mae_hf", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    own = [path for path in files if path.parent.name == "config" or path == ROOT / "benchmarks" / "config.py"]
    read = set().union(*(_names_read(ast.parse(path.read_text())) for path in files if path not in own))
    # the dataclasses' own derived numbers count as readers, their checks do not
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(path.read_text())) for path in own):
        if isinstance(node, ast.FunctionDef) and node.name not in ("__post_init__", "describe"):
            read |= _names_read(node)
    whole = {field.name for field in dataclasses.fields(MAEConfig)}  # models.mae.mae_config takes all of vars(config)
    dead = [
        f"{config_class.__name__}.{name}"
        for config_class in CLASSES
        for name in typing.get_type_hints(config_class)
        if name not in read and not (config_class is MAEConfig and name in whole)
    ]
    assert not dead


@pytest.mark.parametrize(("size", "expected"), [(512, 512), (128, 256), (64, 256), (16, 64), (1, 4)])
def test_evaluations_take_up_to_256_images_at_once_and_four_micro_batches_at_most(size, expected):
    train = TrainConfig(batch_size=512, per_device_batch_size=size)
    assert train.plan(1000, 1).eval_batch_size == expected


def test_a_decay_of_the_average_that_keeps_the_first_weights_for_ever_is_refused():
    with pytest.raises(ConfigError, match=r"ema_decay 1.0 is not a decay: choose 0 \(no average\) or less than 1"):
        FinetuneTrainConfig(ema_decay=1.0)


def test_a_stream_that_would_have_to_go_back_is_refused():
    with pytest.raises(ConfigError, match="max_skipped_windows 2 would go back to batches that a stream has passed"):
        PretrainConfig(data=DataConfig(streaming=True), train=PretrainTrainConfig(max_skipped_windows=2))
