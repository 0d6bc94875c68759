"""Untrusted images become pixels or one line, without other programs, much memory or much time."""

import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzz import DEADLINE, examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import load_image_files
from mae_hf.data.decode import MAX_PIXELS, decode
from mae_hf.errors import ConfigError

SIZE = 16
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# settings that make Pillow write the more unusual kinds
KINDS: tuple[tuple[str, dict], ...] = (
    *((name, {}) for name in FORMATS),
    ("JPEG", {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"}),
    ("GIF", {"save_all": True, "append_images": [Image.new("L", (7, 5))] * 3}),
    ("PNG", {"save_all": True, "append_images": [Image.new("RGB", (7, 5))] * 3}),
    ("WEBP", {"lossless": True, "save_all": True, "append_images": [Image.new("RGB", (7, 5))]}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate", "save_all": True, "append_images": [Image.new("L", (3, 3))]}),
    ("TIFF", {"compression": "packbits"}),
    ("PNG", {"icc_profile": b"\0" * 300, "transparency": b"\0"}),
)


def encoded(kind: str, options: dict, mode: str, size: tuple[int, int]) -> bytes | None:
    """The bytes of an image of this kind, None where Pillow does not write it."""
    if (kind, mode) == ("TIFF", "YCbCr"):
        return None  # Pillow does not read what it writes
    image = Image.effect_noise(size, 90).convert("RGB")
    target = io.BytesIO()
    try:
        (image.convert("L").convert(mode) if mode in ("I;16", "I", "F") else image.convert(mode)).save(
            target, kind, **options
        )
    except Exception:  # Pillow's own, of all kinds
        return None
    return target.getvalue()


SEEDS = [
    s for kind, opts in KINDS for mode in MODES for size in ((9, 7), (40, 3)) if (s := encoded(kind, opts, mode, size))
]


def check(result: np.ndarray | str) -> None:
    if isinstance(result, str):
        assert result
        assert "\n" not in result
    else:
        assert result.shape == (SIZE, SIZE, 3)
        assert result.dtype == np.uint8


@examples(250)
@given(data=st.data())
def test_images_with_changed_bytes_become_pixels_or_one_line(data: st.DataObject):
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content) - 1, 400)))
        new = data.draw(
            st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4])
        )
        content[place : place + len(new)] = new
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    check(decode(bytes(content), SIZE))


@examples(100)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM", b"P6\n"]),
)
def test_bytes_of_any_kind_become_one_line(content: bytes, magic: bytes):
    check(decode(magic + content, SIZE))


def test_every_seed_is_an_image():
    assert len(SEEDS) > 60
    assert {type(decode(seed, SIZE)) for seed in SEEDS} == {np.ndarray}


OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n%%EOF\n",
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "XPM": b'/* XPM */\nstatic char *a[] = {\n"1 1 1 1",\n"a c #000000",\n"a"\n};\n',
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "HTML": b"<html><script>alert(1)</script></html>",
    "a zip": b"PK\x03\x04" + b"\0" * 40,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_by_name_and_start_no_program(name: str, tmp_path: Path, monkeypatch):
    """Pillow gives EPS to Ghostscript, which runs programs."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "no image in one of the formats JPEG" in str(decode(OTHERS[name], SIZE))
    (tmp_path / "x.png").write_bytes(OTHERS[name])  # a file's ending says nothing
    with pytest.raises(ConfigError, match="no image in one of the formats JPEG"):
        load_image_files([str(tmp_path / "x.png")], SIZE, DataConfig())
    assert not (tmp_path / "ran").exists()


def test_an_image_that_is_also_an_archive_or_a_page_is_only_its_pixels():
    picture = Image.new("RGB", (SIZE, SIZE), (9, 99, 199))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../evil.py", "raise SystemExit")
    for kind in ("GIF", "PNG", "BMP"):
        target = io.BytesIO()
        picture.save(target, kind)
        for tail in (archive.getvalue(), b"<script>alert(1)</script>", b"%PDF-1.4"):
            np.testing.assert_array_equal(decode(target.getvalue() + tail, SIZE), decode(target.getvalue(), SIZE))


def png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: bytes = b"") -> bytes:
    """A grey PNG of its parts: header, other chunks, compressed rows."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def zeros(num: int) -> bytes:
    """`num` zeros as zlib makes them small."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(b"\0" * min(2**20, num - at)) for at in range(0, num, 2**20)) + packer.flush()


def bombs() -> dict[str, bytes]:
    """Small files that ask for much."""
    much = zeros(2**28)
    exif = Image.Exif()
    for tag in range(0x9000, 0x9200):
        exif[tag] = "x" * 100
    target, text = io.BytesIO(), PngImagePlugin.PngInfo()
    for number in range(200):
        text.add_text(f"key {number}", "x" * 1000)
    Image.new("L", (8, 8)).save(target, "PNG", pnginfo=text, exif=exif)
    gif = (
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", 65535, 65535)
        + b"\0\2\0;"
    )
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 3)
    tiff += b"".join(struct.pack("<HHII", tag, 4, 1, 10**9) for tag in (256, 257, 273)) + b"\0" * 4
    endless = (
        b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 2**31 - 1, 8) + struct.pack("<I", 8)
    )
    return {
        "a PNG of 10 billion pixels": png(100_000, 100_000, rows=zeros(2**20)),
        "a PNG a little too large": png(MAX_PIXELS // 1024 + 1, 1024, rows=much),
        "a PNG with text of 256 MB": png(8, 8, (b"zTXt", b"a\0\0" + much), rows=zeros(72)),
        "a PNG with a profile of 256 MB": png(8, 8, (b"iCCP", b"a\0\0" + much), rows=zeros(72)),
        "a PNG with 256 MB of rows too many": png(8, 8, rows=much),
        "much metadata": target.getvalue(),
        "a GIF of 4 billion pixels": gif,
        "a TIFF of a billion billion pixels": tiff,
        "a TIFF with 2 billion values in a tag": endless,
        "a BMP of 2 billion columns": b"BM"
        + b"\0" * 8
        + struct.pack("<IIiiHHIIiiII", 54, 40, 2**31 - 1, 1, 1, 24, *[0] * 6),
        "a PPM of a billion rows": b"P6\n1 1000000000\n255\n",
    }


def test_a_bomb_takes_less_than_256_mebibytes_and_a_few_seconds(tmp_path: Path):
    """All in one separate process, whose memory is measured."""
    for number, content in enumerate(bombs().values()):
        (tmp_path / f"{number:02}").write_bytes(content)
    code = """if True:
        import resource, sys, time
        from pathlib import Path
        from mae_hf.data.decode import decode
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for file in sorted(Path(sys.argv[1]).iterdir()):
            start = time.process_time()
            result = decode(file.read_bytes(), 16)
            mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            print(file.name, type(result).__name__, time.process_time() - start, mebibytes)
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, line in zip(bombs(), done.stdout.splitlines(), strict=True):
        _, kind, seconds, mebibytes = line.split()[:4]
        assert kind == ("ndarray" if name in ("much metadata", "a PNG with 256 MB of rows too many") else "str"), (
            name,
            line,
        )
        assert float(seconds) < DEADLINE, (name, line)
        assert int(mebibytes) < 256, (name, line)


@pytest.mark.slow
def test_the_largest_image_with_16_bits_takes_less_than_two_gigabytes(tmp_path: Path):
    code = """if True:
        import io, resource
        from PIL import Image
        from mae_hf.data.decode import decode
        target = io.BytesIO()
        Image.new("I;16", (8192, 8192), 257).save(target, "TIFF", compression="tiff_deflate")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert decode(target.getvalue(), 16).tolist() == [[[1, 1, 1]] * 16] * 16
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2048


def test_a_path_that_is_no_file_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in (tmp_path / "pipe.png", "/dev/zero", "/dev/stdin", tmp_path, tmp_path / "no.png", "a\0b"):
        assert isinstance(decode(str(name), SIZE), str)
