"""What fuzzing begins with: small, well-formed input of every kind, made here."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
from PIL import Image

from builders import make_rows, published_csv, published_row
from cxu import codec, store
from cxu.criteria import Criteria
from cxu.selection import filter_rows
from film_helpers import save_film
from fuzzing.targets import TARGETS


@functools.cache
def seeds_of(target: str) -> list[bytes]:
    """Return the seeds of a target."""
    return _SEEDS[target]()


def _rle() -> list[bytes]:
    rng = np.random.default_rng(0)
    masks = [np.zeros((9, 7), np.uint8), np.ones((9, 7), np.uint8), rng.integers(0, 2, (9, 7)).astype(np.uint8)]
    texts = [codec.encode_rle(mask) for mask in masks]
    return [bytes([8, 6]) + text.encode() for text in [*texts, "1 2 3", "5 1 4 1", "0 3", "1 -1", "a 1", "1_0 2"]]


def _coco() -> list[bytes]:
    rng = np.random.default_rng(0)
    masks = [np.zeros((9, 7), np.uint8), np.ones((9, 7), np.uint8), rng.integers(0, 2, (9, 7)).astype(np.uint8)]
    texts = [codec.compress_coco_counts(codec.encode_coco_counts(mask)) for mask in masks]
    return [bytes([8, 6]) + text.encode() for text in [*texts, "o", "PPPPPPPPPPPPPPP0"]]


def _landmarks() -> list[bytes]:
    return [
        b"1,2,3,4|10.5,-2,0.25,1023",
        b"[[1. 2.]\n [3. 4.]]|[1, 2, 3, 4]|1 2 3 4",
        b"1,2,3|1,2,3,4,5|1e3,2E-2,.5,5.|nan,1,2,3|inf,1,2,3|1e999,0,0,0||-,1,2,3|1_0,2,3,4",
        b"12345678,1,2,3|123456789,1,2,3|-0.1234,1,2,3|--1,2,3,4|1..2,2,3,4|,1,2,3,4,|\xff,1,2,3",
    ]


def _published() -> list[bytes]:
    rows = [published_row(), published_row("00000002_000.png")]
    wrong = published_row("00000003_000.png", Landmarks_Mean="1,2,3", Dice_RCA_Mean="high")
    bracketed = published_row("00000004_000.png", Landmarks_Mean="[" + "\n ".join(["1 2"] * 120) + "]")
    return [
        published_csv(rows).encode(),
        published_csv([*rows, wrong, "x,y"], newline="\r\n").encode(),
        published_csv([bracketed, published_row(Height="", Width="0")]).encode(),
        published_csv([published_row(Landmarks_Std="-1," * 239 + "-1"), published_row(Heart="5 x")]).encode(),
    ]


def _parquet() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path, found = Path(folder) / "t.parquet", []
        rows = make_rows(2)
        selected, _, _ = filter_rows(rows, Criteria())
        samples = rows.replace_schema_metadata({b"cxu": b'{"schema_version": 99}'})
        for one in (rows, selected, samples, pa.table({"a": [1]})):
            store.write_table(one, path)
            found.append(path.read_bytes())
        return found


def _image() -> list[bytes]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (70, 66)).astype(np.uint8)
    deep = (grey.astype(np.uint16) << 8) + 7
    found = []
    for kind, suffix, pixels in (
        (0, "png", grey),
        (0, "png", deep),
        (1, "jpeg", grey),
        (2, "tiff", grey),
        (2, "tiff", deep),
    ):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format=suffix)
        found.append(bytes([kind]) + stream.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        save_film(path, shape_hw=grey.shape, PixelData=grey.tobytes())
        found.append(b"\x03" + path.read_bytes())
        save_film(
            path,
            shape_hw=grey.shape,
            BitsAllocated=16,
            BitsStored=12,
            HighBit=11,
            PixelData=(deep >> 4).tobytes(),
            WindowCenter=2000,
            WindowWidth=3000,
            RescaleSlope=2,
            RescaleIntercept=-5,
            PixelSpacing=[0.2, 0.3],
            PhotometricInterpretation="MONOCHROME1",
        )
        found.append(b"\x03" + path.read_bytes())
        assert pydicom.dcmread(path).Rows == grey.shape[0]
    return found


def _weights() -> list[bytes]:
    from cxu.model.hybridgnet import HybridGNet, ModelConfig

    found = []
    for options in ({}, {"use_skip": False}, {"refine": True, "spread": True}):
        state = HybridGNet(ModelConfig(size=64, latents=1, order=1, filters=(1, 1), **options)).state_dict()
        # every tensor over the same bytes, so that the file stays small: a reader must refuse that
        at, header = 0, {}
        for name, tensor in state.items():
            header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + 4 * tensor.numel()]}
            at += 4 * tensor.numel()
        found.append(b"S" + json.dumps(header).encode())
    few = {"encoder.fc_mu.weight": {"dtype": "F32", "shape": [2, 512], "data_offsets": [0, 4096]}}
    found.append(b"S" + json.dumps({"__metadata__": {"cxu_config": "{}"}, **few}).encode())
    import torch

    stream = io.BytesIO()
    torch.save({"encoder.fc_mu.weight": torch.zeros(1, 128)}, stream)
    found.append(b"P" + stream.getvalue())
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream, _use_new_zipfile_serialization=False)
    found.append(b"P" + stream.getvalue())
    return found


def _words() -> list[bytes]:
    return [
        b"5",
        b"p80",
        b"heart=8,lungs=p90",
        b"view=PA",
        b"age>=18",
        b"a!=b",
        b"00000001_000\n00000002_000\n",
        b"Image Index,Finding Labels,Patient Age\n00000001_000.png,Cardiomegaly,58\n00000002_000.png,No Finding,\n",
    ]


def _records() -> list[bytes]:
    listing = {
        "source": "chestxray8",
        "frame": "model",
        "files": [
            {
                "name": "a.csv",
                "sha256": "00",
                "rows": 2,
                "malformed": 0,
                "rle_kept": False,
                "repo": None,
                "revision": None,
                "parts": [{"name": "part-0.parquet", "rows": 2, "sha256": "00"}],
            }
        ],
        "partial": None,
        "digest": "00",
    }
    return [json.dumps(listing).encode(), b'{"command": "rasterize", "identity": "a", "table": {}}', b"[]", b"{"]


_SEEDS = {
    "rle": _rle,
    "coco": _coco,
    "landmarks": _landmarks,
    "published": _published,
    "parquet": _parquet,
    "image": _image,
    "weights": _weights,
    "words": _words,
    "records": _records,
}
assert _SEEDS.keys() == TARGETS.keys()
