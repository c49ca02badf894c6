"""Small hand-made ONNX files that stand for the weights of face packages: a planted detection, and tiny networks with
the right names and shapes. Their embeddings tell pictures apart but mean nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

#: What the detectors find: box, five landmarks, score, in pixels of their input.
BOX = (200.0, 160.0, 328.0, 320.0)
POINTS = ((232.0, 224.0), (296.0, 222.0), (264.0, 256.0), (240.0, 288.0), (290.0, 286.0))
SCORE = 0.875


def _save(path: Path, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray], opset: int) -> None:
    from onnx import checker, helper, numpy_helper, save

    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, str(path))


def _planted(path: Path, name: str, shape: list, arrays: dict[str, np.ndarray], opset: int = 11) -> None:
    """A network that gives the arrays whatever its input is."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", [name], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    outputs = []
    for out, value in arrays.items():
        nodes.append(helper.make_node("Add", [f"{out}_is", "nothing"], [out]))
        outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, list(value.shape)))
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    constants = {"zero": np.zeros((), np.float32), **{f"{out}_is": value for out, value in arrays.items()}}
    _save(path, nodes, [given], outputs, constants, opset)


def scrfd(path: Path, side: int = 640) -> None:
    """insightface's detector: nine outputs, three strides with two anchors a cell."""
    arrays: dict[str, np.ndarray] = {}
    for kind, width in (("score", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            arrays[f"{kind}_{stride}"] = np.zeros((2 * (side // stride) ** 2, width), np.float32)
    stride, cell = 32, (7, 7)  # its anchor lies at the cell's corner
    row = 2 * (cell[1] * (side // stride) + cell[0])
    anchor = np.array(cell, np.float32) * stride
    arrays["score_32"][row] = SCORE
    arrays["bbox_32"][row] = np.concatenate([anchor - BOX[:2], np.array(BOX[2:]) - anchor]) / stride
    arrays["kps_32"][row] = ((np.array(POINTS) - anchor) / stride).reshape(-1)
    _planted(path, "input.1", [1, 3, "h", "w"], {k: v.astype(np.float32) for k, v in arrays.items()})


def recogniser(path: Path, width: int = 512) -> None:
    """ArcFace's and SFace's shape: a crop of 112 to one vector, here a fixed projection of its means in 8 x 8 cells."""
    from onnx import TensorProto, helper

    weights = np.random.default_rng(0).normal(size=(3 * 64, width)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["data"], ["cells"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights"], ["fc1"]),
    ]
    given = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 112, 112])
    out = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, ["n", width])
    _save(path, nodes, [given], [out], {"weights": weights}, 11)


def landmarks106(path: Path) -> None:
    """insightface's 106 landmarks: shares of a crop of 192 in [-1, 1], here all in its middle but the first."""
    values = np.zeros((1, 212), np.float32)
    values[0, :2] = (-0.5, 0.25)
    _planted(path, "data", [1, 3, 192, 192], {"fc1": values})


def yunet(path: Path, side: int = 640) -> None:
    """OpenCV's detector: twelve outputs, three strides with one anchor a cell."""
    arrays: dict[str, np.ndarray] = {}
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            arrays[f"{kind}_{stride}"] = np.zeros((1, (side // stride) ** 2, width), np.float32)
    stride, cell = 32, (8, 7)
    row, anchor = cell[1] * (side // stride) + cell[0], np.array(cell, np.float32)
    middle, size = np.array([BOX[0] + BOX[2], BOX[1] + BOX[3]]) / 2, np.array([BOX[2] - BOX[0], BOX[3] - BOX[1]])
    arrays["cls_32"][0, row] = arrays["obj_32"][0, row] = SCORE
    arrays["bbox_32"][0, row] = np.concatenate([middle / stride - anchor, np.log(size / stride)])
    arrays["kps_32"][0, row] = (np.array(POINTS) / stride - anchor).reshape(-1)
    _planted(path, "input", [1, 3, side, side], {k: v.astype(np.float32) for k, v in arrays.items()})
