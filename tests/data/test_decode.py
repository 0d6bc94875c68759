"""Images of every mode and size become the pixels that the rules promise."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from mae_hf.config.data import DataConfig
from mae_hf.data.decode import decode, to_rgb_square

RANDOM = np.random.default_rng(0)


def from_file(image: Image.Image, kind: str, **options) -> Image.Image:
    """The image, written to a file and opened again."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def pixels(*shape: int, high: int = 256, dtype=np.uint8) -> np.ndarray:
    return RANDOM.integers(0, high, shape).astype(dtype)


def test_rgb_of_the_right_size_is_kept_bit_for_bit():
    image = pixels(12, 12, 3)
    np.testing.assert_array_equal(to_rgb_square(from_file(Image.fromarray(image), "PNG"), 12), image)


def test_an_empty_file_and_a_heic_file_are_named_as_such():
    assert decode(b"", 12, DataConfig()) == "it is empty"
    heic = b"\0\0\0\x18ftypheic" + bytes(12)
    assert "HEIC" in str(decode(heic, 12, DataConfig()))


def test_grey_is_repeated_and_one_bit_is_black_and_white():
    grey = pixels(12, 12)
    np.testing.assert_array_equal(to_rgb_square(from_file(Image.fromarray(grey), "PNG"), 12), np.stack([grey] * 3, -1))
    bits = Image.fromarray((grey > 100).astype(np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(to_rgb_square(from_file(bits, "PNG"), 12)[..., 1], (grey > 100) * 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = pixels(12, 12, high=65536, dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(
            to_rgb_square(from_file(Image.fromarray(grey), kind), 12)[..., 2], np.round(grey / 65535 * 255)
        )


@pytest.mark.parametrize("highest", [1, 255])
def test_floats_up_to_one_or_up_to_255_are_scaled(highest):
    values = np.linspace(0, highest, 144).reshape(12, 12).astype(np.float32)
    result = to_rgb_square(from_file(Image.fromarray(values), "TIFF"), 12)
    np.testing.assert_allclose(result[..., 0], values / highest * 255, atol=0.51)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = pixels(12, 12, len(mode))
    colour, alpha = image[..., :-1].astype(float), image[..., -1:] / 255
    result = to_rgb_square(from_file(Image.fromarray(image, mode), "PNG"), 12)
    np.testing.assert_allclose(result, np.broadcast_to(colour * alpha + 255 * (1 - alpha), (12, 12, 3)), atol=1)


def test_a_palette_gives_its_colours_and_its_transparent_one_is_white():
    palette, index = pixels(4, 3), pixels(12, 12, high=4)
    image = Image.fromarray(index, "L").convert("P")
    image.putpalette(palette.ravel().tolist())
    np.testing.assert_array_equal(to_rgb_square(from_file(image, "PNG"), 12), palette[index])
    palette[2] = 255
    np.testing.assert_array_equal(to_rgb_square(from_file(image, "PNG", transparency=2), 12), palette[index])


def test_cmyk_becomes_rgb():
    inks = np.repeat(pixels(1, 1, 4), 12, 0).repeat(12, 1)
    ink = inks.astype(float) / 255
    result = to_rgb_square(from_file(Image.fromarray(inks, "CMYK"), "TIFF"), 12)
    np.testing.assert_allclose(result, 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:]), atol=2)
    assert to_rgb_square(from_file(Image.fromarray(inks, "CMYK"), "JPEG"), 12).shape == (12, 12, 3)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_the_orientation_in_exif_is_applied(orientation, turns):
    image = pixels(12, 12, 3)
    exif = Image.Exif()
    exif[274] = orientation
    result = to_rgb_square(from_file(Image.fromarray(image), "PNG", exif=exif), 12)
    np.testing.assert_array_equal(result, np.rot90(image, turns))


@pytest.mark.parametrize("size", [(130, 97), (97, 130), (40, 200), (224, 224), (64, 64), (96, 151), (3, 2)])
def test_other_sizes_are_resized_by_the_shorter_side_and_cropped_to_the_centre(size):
    image = Image.fromarray(pixels(size[1], size[0], 3)).resize((max(2, size[0] // 3), size[1] // 3 or 1)).resize(size)
    scale = 96 / min(size)
    whole = image.resize((int(size[0] * scale), int(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 96) // 2, (whole.height - 96) // 2
    expected = np.asarray(whole.crop((left, top, left + 96, top + 96)), int)
    np.testing.assert_allclose(to_rgb_square(image, 96), expected, atol=1)


def test_a_long_thin_image_is_cropped_before_it_is_enlarged():
    start = time.thread_time()
    result = to_rgb_square(Image.new("RGB", (60_000, 1), (1, 2, 3)), 96)  # as a whole it would be 5,760,000 x 96
    assert (result == (1, 2, 3)).all()
    assert time.thread_time() - start < 0.5


@pytest.mark.parametrize("size", [(130, 97), (97, 130), (40, 200), (224, 224), (64, 64), (96, 151), (3, 2)])
def test_padding_keeps_the_whole_image_between_borders_in_the_mean_colour(size):
    image = Image.fromarray(pixels(size[1], size[0], 3))
    data = DataConfig(resize="pad", image_mean=(0.2, 0.5, 1.0))
    expected = ImageOps.pad(image, (96, 96), Image.Resampling.BICUBIC, color=(51, 128, 255))
    np.testing.assert_array_equal(to_rgb_square(image, 96, data), np.asarray(expected))


@pytest.mark.parametrize("size", [(130, 97), (97, 130), (40, 200), (96, 151), (3, 2)])
def test_squashing_keeps_the_whole_image_and_changes_its_proportions(size):
    image = Image.fromarray(pixels(size[1], size[0], 3))
    expected = image.resize((96, 96), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(to_rgb_square(image, 96, DataConfig(resize="squash")), np.asarray(expected))


@pytest.mark.parametrize("resize", ["pad", "squash"])
def test_a_long_thin_image_keeps_a_row_of_pixels(resize):
    result = to_rgb_square(Image.new("RGB", (60_000, 1), (1, 2, 3)), 96, DataConfig(resize=resize))
    assert (result == (1, 2, 3)).all(axis=-1).any()
    same = pixels(96, 96, 3)
    np.testing.assert_array_equal(to_rgb_square(Image.fromarray(same), 96, DataConfig(resize=resize)), same)


@pytest.mark.parametrize("num_channels", [2, 5, 7])
def test_a_tiff_of_many_channels_is_named_as_such(tmp_path, num_channels):
    """Samples beside each other without a colour space, as satellites and microscopes write them."""
    samples = pixels(12, 12, num_channels).tobytes()
    bits = struct.pack(f"<{num_channels}H", *[8] * num_channels)
    tags = [(256, 4, 1, 12), (257, 4, 1, 12), (258, 3, num_channels, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8 + len(bits)), (277, 3, 1, num_channels), (278, 4, 1, 12), (279, 4, 1, len(samples))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    content = b"II*\0" + struct.pack("<I", 8 + len(bits) + len(samples)) + bits + samples + directory
    (tmp_path / "bands.tif").write_bytes(content)
    for encoded in (content, str(tmp_path / "bands.tif")):
        assert "TIFF with channels or bits that Pillow cannot read" in decode(encoded, 12)
