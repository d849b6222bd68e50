"""Encoders for variants that Pillow reads but does not write."""

import struct
import zlib

import numpy as np

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def pack(samples, depth):
    """Rows of `samples` (`[height, width]` or `[height, width, channels]`) as a PNG stores them."""
    rows = samples.reshape(samples.shape[0], -1)
    out = b""
    for row in rows:
        if depth == 16:
            data = row.astype(">u2").tobytes()
        elif depth == 8:
            data = row.astype(np.uint8).tobytes()
        else:
            bits = "".join(format(int(value), f"0{depth}b") for value in row)
            bits += "0" * (-len(bits) % 8)
            data = int(bits, 2).to_bytes(len(bits) // 8, "big")
        out += b"\0" + data
    return out


def png(samples, color, depth, interlaced, chunks=()):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    if interlaced:
        data = b""
        for left, top, across, down in ADAM7:
            part = samples[top::down, left::across]
            if part.shape[0] and part.shape[1]:
                data += pack(part, depth)
    else:
        data = pack(samples, depth)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    for name, body in chunks:
        out += chunk(name, body)
    return out + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def gif(screen, palette, frames):
    """`frames`: (left, top, indices, local palette or None, transparent index or None)."""

    def colors(palette):
        bits = max(1, (len(palette) // 3 - 1).bit_length())
        return bits, palette.ljust(3 << bits, b"\0")

    bits, table = colors(palette)
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | (bits - 1), 0, 0) + table
    for left, top, indices, local, transparent in frames:
        if transparent is not None:
            out += b"\x21\xf9\x04\x01\0\0" + bytes([transparent, 0])
        height, width = indices.shape
        flags, local_table = 0, b""
        if local is not None:
            local_bits, local_table = colors(local)
            flags = 0x80 | (local_bits - 1)
        out += b"," + struct.pack("<HHHHB", left, top, width, height, flags) + local_table
        out += b"\x08" + sub_blocks(lzw(indices))
    return out + b";"


def lzw(indices):
    """Codes of 9 bits only: the table is cleared before it grows."""
    bits, count = 0, 0
    for number, index in enumerate(indices.ravel()):
        if number % 200 == 0:
            bits |= 256 << count
            count += 9
        bits |= int(index) << count
        count += 9
    bits |= 257 << count
    return bits.to_bytes((count + 9 + 7) // 8, "little")


def sub_blocks(data):
    out = b""
    for start in range(0, len(data), 255):
        block = data[start : start + 255]
        out += bytes([len(block)]) + block
    return out + b"\0"


def bmp(kind, indices, palette, rgb):
    """One of the variants; `indices` are below 16, `rgb` has the same size."""
    height, width = indices.shape
    colors = b"".join(palette[i : i + 3][::-1] + b"\0" for i in range(0, len(palette), 3))
    depth, compression, extra, table = 24, 0, b"", b""
    flip = 1

    def rows(packed):
        return b"".join(row + b"\0" * (-len(row) % 4) for row in packed)

    if kind == "palette1":
        depth, table = 1, colors[:8]
        packed = rows(np.packbits(row & 1).tobytes() for row in indices[::-1])
    elif kind == "palette4":
        depth, table = 4, colors
        padded = np.pad(indices, ((0, 0), (0, width % 2)))
        packed = rows((row[0::2] << 4 | row[1::2]).tobytes() for row in padded[::-1])
    elif kind == "rle8":
        depth, compression, table = 8, 1, colors
        packed = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in indices[::-1]) + b"\0\1"
    elif kind == "rle4":
        depth, compression, table = 4, 2, colors
        packed = b"".join(b"".join(bytes([1, v << 4]) for v in row) + b"\0\0" for row in indices[::-1]) + b"\0\1"
    elif kind == "rgb555":
        depth = 16
        wide = rgb.astype(np.uint16) >> 3
        packed = rows((r[:, 0] << 10 | r[:, 1] << 5 | r[:, 2]).astype("<u2").tobytes() for r in wide[::-1])
    elif kind == "rgb565":
        depth, compression, extra = 16, 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F)
        wide = rgb.astype(np.uint16)
        packed = rows(
            ((r[:, 0] >> 3) << 11 | (r[:, 1] >> 2) << 5 | r[:, 2] >> 3).astype("<u2").tobytes() for r in wide[::-1]
        )
    elif kind == "rgb32":
        depth = 32
        packed = rows(np.pad(r[:, ::-1], ((0, 0), (0, 1))).tobytes() for r in rgb[::-1])
    else:
        order = rgb if kind == "top_down" else rgb[::-1]
        flip = -1 if kind == "top_down" else 1
        packed = rows(r[:, ::-1].tobytes() for r in order)
    if kind == "core":
        header = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        used = len(table) // 4
        header = struct.pack(
            "<IiiHHIIiiII", 40, width, flip * height, 1, depth, compression, len(packed), 2835, 2835, used, 0
        )
    start = 14 + len(header) + len(extra) + len(table)
    head = b"BM" + struct.pack("<IHHI", start + len(packed), 0, 0, start)
    return head + header + extra + table + packed
