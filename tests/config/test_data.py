"""The settings of the data."""

import pytest
from refused import check_refused, id_of

from mae_hf.config.data import DataConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fold": 10}, "data.fold is 10 but must be at least 0 and at most 9 (--data.fold)"),
        (
            {"fold": 1, "label_fraction": 0.5},
            "data.fold 1 and data.label_fraction 0.5 both restrict the labels: set one to null (--data.fold)",
        ),
        (
            {"fold": 1, "label_fraction": 1.0},
            "data.fold 1 and data.label_fraction 1.0 both restrict the labels: set one to null (--data.fold)",
        ),
        ({"label_fraction": 1.5}, "data.label_fraction is 1.5 but must be above 0 and at most 1"),
        ({"source": []}, "data.source is empty: name at least one source (--data.source digits)"),
        ({"validation_fraction": 1.0}, "data.validation_fraction is 1.0 but must be above 0 and below 1"),
        ({"test_fraction": 1.0}, "data.test_fraction is 1.0 but must be at least 0 and below 1"),
        ({"image_std": (0.2, 0.0, 0.2)}, "data.image_std is [0.2, 0.0, 0.2] but must be above 0"),
        ({"stream_buffer": 7}, "data.stream_buffer 7 is below the number of readers, 8: choose 8 or more"),
        ({"class_names": ("cat", "dog", "cat")}, "data.class_names has two classes named cat .. --data.class_names"),
        ({"class_names": ("a" * 201,)}, "data.class_names has a class name of 201 characters .. --data.class_names"),
    ],
    ids=id_of,
)
def test_a_wrong_value_is_named_with_what_is_allowed_and_the_flag(fields, message):
    check_refused(DataConfig, fields, message)


def test_one_source_and_several_read_alike():
    assert DataConfig(source="digits").sources == ("digits",)
    assert DataConfig(source=["a", "b"]).sources == ("a", "b")


def test_all_labels_of_train_are_a_label_set_too():
    assert not DataConfig().has_label_set
    assert DataConfig(fold=0).has_label_set and DataConfig(label_fraction=0.5).has_label_set
    assert DataConfig(label_fraction=1.0).has_label_set
