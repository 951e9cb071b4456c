"""What a compiler says that kernels need: registers, spills and shared memory, or vector memory.

    found = resources(absent.compiled("h100:1", function, *shapes))
    {"attention_forward": {"registers": 255, "stack": 0, "shared": 66560}, …}

A GPU's program is read as XLA serialises it: records of Riegeli, compressed by Snappy, in which
the machine code is an ELF file that tells each kernel's needs in its section `.nv.info`. A TPU's
program tells them in its text.
"""

import json
import re
import struct
from collections.abc import Iterator
from typing import Any

SIGNATURE = bytes.fromhex("83af70d10d884a3f")  # of a Riegeli file, whose blocks have 64 KiB
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 65_536, 24, 40
ELF = b"\x7fELF\x02"
REGISTERS, FRAME = 0x2F, 0x11  # attributes of `.nv.info`
SHARED, MACHINE = ".nv.shared.", 190
VECTOR_MEMORY = "1"  # the number of this memory space in a TPU's program


def resources(program: Any) -> dict[str, dict[str, int]]:
    """For each kernel of a compiled program by name, what the compiler says that it needs.

    GPU: `registers` of a thread at its start, bytes of `stack` of a thread (spills are there), and
    bytes of `shared` memory of a block, where XLA launches it; Mosaic-GPU launches its own. TPU:
    bytes of vector memory (`vmem`).
    """
    text = program.as_text() or ""
    if "tpu_custom_call" in text:
        return _of_tpu(text)
    found: dict[str, dict[str, int]] = {}
    whole = _unpacked(program.runtime_executable().serialize())
    for code in _files(whole):
        for name, needs in _of_elf(code).items():
            launched = _launched(whole, name)
            if launched is None:
                del needs["shared"]
            else:
                needs["shared"] += launched
            found.setdefault(name.removesuffix("_mosaic_gpu_kernel"), needs)
    return found


def plain(found: dict[str, dict[str, int]]) -> dict[str, int]:
    """The same as one level: `attention_forward.registers` and so on."""
    return {f"{name}.{what}": n for name, needs in found.items() for what, n in needs.items()}


def _of_tpu(text: str) -> dict[str, dict[str, int]]:
    found = {}
    for line in text.splitlines():
        memories = re.search(r'"used_scoped_memory_configs":(\[[^\]]*\])', line)
        name = re.search(r"op_name=\"[^\"]*?([A-Za-z_]\w*)\)*/pallas_call", line)
        if 'custom_call_target="tpu_custom_call"' in line and memories and name:
            spaces = json.loads(memories[1])
            used = sum(int(m["size"]) for m in spaces if m["memory_space"] == VECTOR_MEMORY)
            found[name[1]] = {"vmem": used}
    return found


def _unpacked(data: bytes) -> bytes:
    """The records of a program; JAX 0.12 has such files within records."""
    start = data.find(SIGNATURE)
    assert start >= 0, "the program is not serialised as Riegeli records"
    while start >= 0:
        data = b"".join(_chunks(data[start:]))
        start = data.find(SIGNATURE)
    return data


def _files(whole: bytes) -> Iterator[bytes]:
    """What begins as an ELF file in a program."""
    at = whole.find(ELF)
    while at >= 0:
        yield whole[at:]
        at = whole.find(ELF, at + 1)


def _launched(whole: bytes, kernel: str) -> int | None:
    """The shared memory with which XLA launches a kernel: field 6 of the launch, its name is 4."""
    name = kernel.encode()
    at = whole.find(b'"' + bytes([len(name)]) + name + b"*")
    while at >= 0 and whole[at] & 7 == 2:  # fields that say how long they are
        size, after = _varint(whole, at + 1)
        at = after + size
        if whole[at] == 6 << 3:
            return _varint(whole, at + 1)[0]
    return None


def _chunks(file: bytes) -> Iterator[bytes]:
    """The records of all chunks of a Riegeli file, without what lies between them."""
    body, at = _without_headers(file), CHUNK_HEADER  # of the signature, which is the first chunk
    while at + CHUNK_HEADER <= len(body):
        size, kind = struct.unpack_from("<Q8xc", body, at + 8)
        at += CHUNK_HEADER
        if kind == b"r":
            yield _records(body[at : at + size])
        at += size


def _without_headers(file: bytes) -> bytes:
    return b"".join(file[i + BLOCK_HEADER : i + BLOCK] for i in range(0, len(file), BLOCK))


def _records(chunk: bytes) -> bytes:
    """The records of a simple chunk, one after another; sizes come first, by the same means."""
    skip, at = _varint(chunk, 1)
    values = chunk[at + skip :]
    if chunk[:1] == b"\0":
        return values
    assert chunk[:1] == b"s", f"records are compressed by {chunk[:1]!r}, not by Snappy"
    return _unsnap(values, _varint(values, 0)[1])


def _unsnap(data: bytes, at: int) -> bytes:
    """What Snappy compressed: literals, and copies of what came before."""
    size, at = _varint(data, at)
    out = bytearray()
    while len(out) < size:
        tag, at = data[at], at + 1
        long, kind = tag >> 2, tag & 3
        if kind == 0:
            wide = max(0, long - 59)
            long = int.from_bytes(data[at : at + wide], "little") if wide else long
            out += data[at + wide : at + wide + long + 1]
            at += wide + long + 1
            continue
        if kind == 1:
            back, long, at = (tag >> 5) << 8 | data[at], (long & 7) + 3, at + 1
        else:
            wide = 2 * kind - 2
            back, at = int.from_bytes(data[at : at + wide], "little"), at + wide
        for _ in range(long + 1):
            out.append(out[-back])
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at


def _of_elf(code: bytes) -> dict[str, dict[str, int]]:
    """What each kernel of an ELF file for a GPU needs; nothing of another machine's."""
    if struct.unpack_from("<H", code, 18)[0] != MACHINE:
        return {}
    (table,) = struct.unpack_from("<Q", code, 40)
    each, count, names = struct.unpack_from("<HHH", code, 58)
    rows = [struct.unpack_from("<IIQQQQIIQQ", code, table + n * each) for n in range(count)]
    word = lambda start: code[start : code.index(b"\0", start)].decode()
    sections = {word(rows[names][4] + row[0]): row for row in rows}
    symbols, strings = sections[".symtab"], sections[".strtab"]
    called = lambda n: word(
        strings[4] + struct.unpack_from("<I", code, symbols[4] + n * symbols[9])[0]
    )
    found: dict[str, dict[str, int]] = {
        name.removeprefix(".text."): {"registers": 0, "stack": 0, "shared": 0}
        for name in sections
        if name.startswith(".text.")
    }
    for attribute, symbol, number in _attributes(code, sections[".nv.info"]):
        kernel, what = called(symbol), {REGISTERS: "registers", FRAME: "stack"}.get(attribute)
        if what and kernel in found:
            found[kernel][what] = number
    for name, row in sections.items():
        if name.startswith(SHARED) and name.removeprefix(SHARED) in found:
            found[name.removeprefix(SHARED)]["shared"] = row[5]
    return found


def _attributes(code: bytes, section: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(attribute, symbol, number) of all attributes that have a number of a symbol."""
    at, end = section[4], section[4] + section[5]
    while at + 4 <= end:
        form, attribute, value = struct.unpack_from("<BBH", code, at)
        at += 4
        if form == 4:  # others have their value in these four bytes
            if value == 8:
                yield attribute, *struct.unpack_from("<II", code, at)
            at += value
