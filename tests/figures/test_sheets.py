"""Sheets hold the pixels that they were given, in their places, with the texts that belong to them."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from mae_hf.figures import sheets

RNG = np.random.default_rng(0)


def pixels(n: int = 3, height: int = 8, width: int = 12) -> np.ndarray:
    """Random pictures."""
    return RNG.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_hidden_patches_are_grey_and_the_others_untouched():
    images, mask = pixels(), RNG.integers(0, 2, (3, 6))  # 2 rows of 3 patches
    before = images.copy()
    hidden = sheets.hide_patches(images, mask, 4)
    for image in range(3):
        for patch in range(6):
            row, column = divmod(patch, 3)
            place = image, slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            assert (hidden[place] == (127 if mask[image, patch] else images[place])).all()
    assert np.array_equal(images, before)


def test_the_reconstruction_figure_has_three_labelled_rows_with_the_pixels_as_they_are():
    rows = [pixels() for _ in range(3)]
    figure = sheets.reconstruction_figure(*rows, title="step 7")
    assert [place.get_ylabel() for place in figure.axes] == ["original", "masked", "reconstruction"]
    assert figure.get_suptitle() == "step 7"
    for place, images in zip(figure.axes, rows, strict=True):
        strip = np.asarray(place.images[0].get_array())
        for number, image in enumerate(images):
            assert np.array_equal(strip[:, 13 * number : 13 * number + 12], image)  # 12 wide and a gap of 1


def test_the_picture_over_time_has_a_column_for_each_step_and_a_row_for_each_image():
    original, masked, early, late = (pixels() for _ in range(4))
    figure = sheets.over_time_figure(original, masked, {5: early, 1200: late}, "t")
    assert [place.get_title() for place in figure.axes] == ["original", "masked", "step 5", "step 1,200"]
    for place, images in zip(figure.axes, (original, masked, early, late), strict=True):
        strip = np.asarray(place.images[0].get_array())
        assert strip.shape == (3 * 8 + 2, 12, 3)
        for number, image in enumerate(images):
            assert np.array_equal(strip[9 * number : 9 * number + 8], image)  # 8 high and a gap of 1


def test_mistakes_stand_beside_each_other_by_arm_each_with_its_text():
    images = pixels(4)
    texts = [f"text {number}" for number in range(4)]
    figure = sheets.mistakes_figure({"MAE": (images, texts), "scratch": (images[:0], [])})
    ours, baseline = figure.axes
    assert (ours.get_title(), baseline.get_title()) == ("MAE", "scratch: no mistakes")
    for number, (shown, text, image) in enumerate(zip(ours.images, ours.texts, images, strict=True)):
        row, column = divmod(number, 3)
        assert text.get_text() == texts[number] and np.array_equal(shown.get_array(), image)
        assert is_below(text, shown) and int(shown.get_extent()[0]) == column
        assert (shown.get_extent()[3] > 1) == (row == 1)
    assert not baseline.images and not baseline.texts


def is_below(text: Text, image: AxesImage) -> bool:
    """Whether a text is centred below a picture, and close to it."""
    left, right, bottom, _ = image.get_extent()
    x, y = text.get_position()
    return x == (left + right) / 2 and 0 < y - bottom < 0.1


def test_attention_is_shown_on_one_scale_beside_its_image():
    images = pixels(2)
    maps = {"MAE": np.full((2, 2, 3), 0.5), "scratch": np.full((2, 2, 3), 4.0)}
    rows = [(name, [images[row], *(heat[row] for heat in maps.values())]) for row, name in enumerate(("cat", "dog"))]
    figure = sheets.attention_figure(rows, ["image", *maps])
    panel, bar = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["image", *maps]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["cat", "dog"]
    assert np.array_equal(panel.images[3].get_array(), images[1])
    assert np.array_equal(panel.images[2].get_array(), maps["scratch"][0])
    for number, shown in enumerate(panel.images):
        left, right, bottom, top = shown.get_extent()
        row, column = divmod(number, 3)
        assert (left < panel.get_xticks()[column] < right) and (top < panel.get_yticks()[row] < bottom)
    assert {shown.get_clim() for shown in panel.images} == {(0, 4)}
    assert bar.get_xlabel() == "attention of the CLS token (1 = spread evenly)"


@pytest.mark.parametrize("num_heads", [1, 12])
def test_no_text_of_a_sheet_of_heads_is_cut_off(num_heads):
    titles = ["image", *(f"head {head}" for head in range(num_heads))]
    figure = sheets.attention_figure([("a name of 14", [pixels(1)[0], *np.ones((num_heads, 2, 2))])], titles)
    assert _texts_are_inside(figure)


def _texts_are_inside(figure: Figure) -> bool:
    figure.set_dpi(300)  # as `figures.save` does
    figure.draw_without_rendering()
    texts = [
        text
        for axes in figure.axes
        for text in (axes.title, axes.xaxis.label, *axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels())
    ]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    inside = figure.bbox.padded(0.5)
    return all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes)


def test_neighbours_stand_in_the_row_of_their_query_which_has_a_frame():
    images = pixels(6, 8, 8).reshape(2, 3, 8, 8, 3)
    texts = [[f"{row} {column}" for column in range(3)] for row in range(2)]
    figure = sheets.neighbours_figure(images, texts, "t")
    (panel,) = figure.axes
    for number, (shown, text) in enumerate(zip(panel.images, panel.texts, strict=True)):
        row, column = divmod(number, 3)
        assert np.array_equal(shown.get_array(), images[row, column])
        assert text.get_text() == texts[row][column] and is_below(text, shown)
    frames = [frame.get_bbox().extents.tolist() for frame in panel.patches]
    assert frames == [
        [left, top, right, bottom] for left, right, bottom, top in (panel.images[i].get_extent() for i in (0, 3))
    ]
    assert _texts_are_inside(figure)


def test_no_text_of_a_sheet_of_many_neighbours_is_cut_off():
    names = [["…name_of_a_file.jpg\n0.987"] * 13] * 8
    assert _texts_are_inside(sheets.neighbours_figure(pixels(8 * 13, 8, 8).reshape(8, 13, 8, 8, 3), names, "a title"))


def test_a_row_of_attention_may_be_shorter_than_the_others():
    rows = [("cat", [pixels(1)[0], *np.ones((3, 2, 2))]), ("dog", [pixels(1)[0], np.ones((2, 2))])]
    (panel, _) = sheets.attention_figure(rows, ["image", "1", "2", "3"]).axes
    assert [shown.get_extent()[0] for shown in panel.images] == [0, 1, 2, 3, 0, 1]


def test_small_pictures_of_a_map_are_at_their_points_and_do_not_overlap():
    points, labels = RNG.normal(size=(300, 2)) * [1, 9], RNG.integers(-1, 3, 300)
    figure = sheets.thumbnails_figure({"MAE": points, "again": points}, pixels(300, 8, 8), labels, ("a", "b", "$c"))
    panel, other = figure.axes
    assert panel.get_title() == "MAE" and len(other.images) == len(panel.images)
    (dots,) = panel.collections
    places = np.asarray(dots.get_offsets())
    np.testing.assert_allclose(np.corrcoef(places[:, 1], points[:, 1])[0, 1], 1)
    assert places.min() == 0 and places.max() == 1
    centres = np.array([np.reshape(image.get_extent(), (2, 2)).mean(axis=1) for image in panel.images])
    assert 50 < len(centres) < 300 and all(np.abs(places - centre).max(axis=1).min() < 1e-9 for centre in centres)
    gaps = np.abs(centres[:, None] - centres[None]).max(axis=2) + np.eye(len(centres))
    sides = [np.ptp(image.get_extent()[:2]) for image in panel.images]
    assert gaps.min() > max(sides)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "\\$c"]


def test_a_map_without_classes_or_with_many_has_no_legend():
    for names in ((), tuple(map(str, range(11)))):
        figure = sheets.thumbnails_figure({"": RNG.normal(size=(5, 2))}, pixels(5), np.full(5, -1), names)
        assert not figure.legends
