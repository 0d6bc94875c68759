"""Encoded images become pixels: RGB squares of one size.

Shapes: S side of the square image.

The EXIF orientation is applied. Grey, palette, CMYK, 1-bit and 16-bit images become RGB; transparency is laid over
white. The shorter side is resized to S (Pillow's bicubic, only if the size differs) and the centre is kept, unless
`data.resize` says otherwise.
"""

import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mae_hf.config.data import DataConfig
from mae_hf.errors import clean

# The only formats that Pillow may open. It has 40 decoders, and one of them starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# all endings of these formats, in lower case
ENDINGS: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib")
ENDINGS += (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm")
MAX_PIXELS = 2**26  # 67 million, a square of 8,192: less than 2 GiB while it is decoded
IMAGES_PER_TASK = 16  # decoded by a thread at a time; Pillow releases the GIL
_CROPPED = DataConfig()
FIX_BAD_IMAGE = "replace such files, or leave them out (--data.on_bad_image skip)"


def border_colour(data: DataConfig) -> tuple[int, ...]:
    """Return the mean colour of the images as RGB, for the borders of `data.resize pad`."""
    return tuple(min(255, max(0, round(255 * value))) for value in data.image_mean)


def to_rgb_square(image: Image.Image, image_size: int, data: DataConfig = _CROPPED) -> np.ndarray:
    """Return an image of any mode and size as np.uint8 (S, S, 3), by the rules at the top of this file."""
    image = to_rgb(image)
    if image.size == (image_size, image_size):
        return np.array(image)  # a resize to the same size would cost 3 % of decoding
    (width, height), short = image.size, min(image.size)
    if data.resize == "squash":
        return np.array(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    if data.resize == "pad":
        scale = image_size / max(image.size)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        square = Image.new("RGB", (image_size, image_size), border_colour(data))
        corner = (round((image_size - inner[0]) / 2), round((image_size - inner[1]) / 2))
        square.paste(image.resize(inner, Image.Resampling.BICUBIC), corner)
        return np.array(square)
    # Fractions of a pixel are cut off, as in the image processor that is saved with the model.
    new_width = max(image_size, int(width * image_size / short))
    new_height = max(image_size, int(height * image_size / short))
    left, top = (new_width - image_size) // 2, (new_height - image_size) // 2
    # Cropping within the resize gives the same pixels without enlarging all of a long thin image.
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min(width, (left + image_size) * x), min(height, (top + image_size) * y))
    return np.array(image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box))


def decode(
    encoded: bytes | str | np.ndarray | Image.Image, image_size: int, data: DataConfig = _CROPPED
) -> np.ndarray | str:
    """Return an image as np.uint8 (S, S, 3), or the reason why it cannot be decoded.

    `encoded` is the bytes of an image file, its path, raw pixels, or an open image.
    """
    try:
        if isinstance(encoded, np.ndarray) and encoded.shape == (image_size, image_size, 3):
            return np.ascontiguousarray(encoded)
        if isinstance(encoded, str) and not Path(encoded).is_file():
            return "there is no such file"  # also for a pipe or a device, which could block
        with open_image(encoded) as image:
            if isinstance(encoded, bytes | str) and image.width * image.height > MAX_PIXELS:
                return f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
            return to_rgb_square(image, image_size, data)
    except UnidentifiedImageError:
        with io.BytesIO(encoded) if isinstance(encoded, bytes) else open(str(encoded), "rb") as file:
            start = file.read(12)
        if not start:
            return "it is empty"
        if start[4:8] == b"ftyp":
            return "it is a HEIC, AVIF or video file, whatever its name says: convert it to JPEG"
        if start[:4] in (b"II*\0", b"MM\0*"):
            return "it is a TIFF with channels or bits that Pillow cannot read: save it as RGB or grey"
        return f"it is no image in one of the formats {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's plugins raise almost anything for broken bytes and decompression bombs
        return clean((str(error).strip() or type(error).__name__).splitlines()[0])


def open_image(encoded: bytes | str | np.ndarray | Image.Image) -> AbstractContextManager[Image.Image]:
    """Open what `decode` takes as an image for `with`, without decoding it; an image that is open stays so."""
    if isinstance(encoded, Image.Image):
        return nullcontext(encoded)
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an upright RGB image of the same size, by the same rules."""
    image.load()  # a PNG may have its EXIF after its pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        # 16 bits, which Pillow may hold in 32. Floats have no fixed range: up to 1, else up to 255.
        scale = (255 if np.nan_to_num(values).max() <= 1 else 1) if image.mode == "F" else 1 / 257
        grey = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), 64):  # 64 rows at a time: in float64 an image is 8 times as large
            rows = np.nan_to_num(values[top : top + 64].astype(np.float64))
            grey[top : top + 64] = np.clip(np.round(rows * scale), 0, 255)
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
