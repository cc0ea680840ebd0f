"""Writes and reads the token file of worker/trainer/data/token_file.h."""

import json
import struct

import numpy as np

ALIGNMENT = 64


def crc32c(data):
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def align_up(value):
    return -(-value // ALIGNMENT) * ALIGNMENT


def write_token_file(path, rows):
    """rows: for each row its documents, for each document (ids, supervised flags)."""
    documents = [d for row in rows for d in row]
    tokens = np.concatenate([d[0] for d in documents]).astype("<i4")
    supervised = np.concatenate([d[1] for d in documents]).astype("u1")
    document_starts = np.cumsum([0] + [len(d[0]) for d in documents]).astype("<i8")
    row_starts = np.cumsum([0] + [len(row) for row in rows]).astype("<i8")
    sections = [("tokens", tokens.tobytes()), ("supervised", supervised.tobytes()),
                ("documents", document_starts.tobytes()), ("rows", row_starts.tobytes())]
    body = b""
    for _, data in sections:
        body += b"\0" * (align_up(len(body)) - len(body)) + data
    fields = {
        "version": 1, "num_tokens": len(tokens), "num_documents": len(documents),
        "num_rows": len(rows), "row_length": max(sum(len(d[0]) for d in row) for row in rows),
        "vocab_size": int(tokens.max()) + 1, "supervised_tokens": int(supervised.sum()),
        "fingerprint": "trajectory", "crc32c": f"{crc32c(body):08x}"}
    header_bytes = 1024 - 16
    offset = 16 + header_bytes
    fields["sections"] = {}
    for name, data in sections:
        offset = align_up(offset)
        fields["sections"][name] = {"offset": offset, "bytes": len(data)}
        offset += len(data)
    header = json.dumps(fields).encode()
    assert len(header) <= header_bytes
    with open(path, "wb") as file:
        file.write(b"SYTOKEN1" + struct.pack("<Q", header_bytes) + header.ljust(header_bytes))
        file.write(body)


def read_token_file(path):
    """The rows as write_token_file takes them: for each its documents, (ids, supervised flags)."""
    data = np.memmap(path, dtype="u1", mode="r")
    assert bytes(data[:8]) == b"SYTOKEN1", path
    header = json.loads(bytes(data[16:16 + struct.unpack("<Q", bytes(data[8:16]))[0]]))

    def section(name, dtype):
        place = header["sections"][name]
        return data[place["offset"]:place["offset"] + place["bytes"]].view(dtype)

    tokens, supervised = section("tokens", "<i4"), section("supervised", "u1")
    documents, rows = section("documents", "<i8"), section("rows", "<i8")
    return [[(np.array(tokens[documents[d]:documents[d + 1]]),
              np.array(supervised[documents[d]:documents[d + 1]]))
             for d in range(rows[r], rows[r + 1])] for r in range(len(rows) - 1)]
