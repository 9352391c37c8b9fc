"""Turns the MiniLM sentence embedder (BERT layout, safetensors) into one int8 ONNX graph, without torch.

    convert_minilm.py SOURCE TARGET
    SOURCE holds   model.safetensors, config.json
    TARGET gets    model_int8.onnx

The graph takes `input_ids` and `attention_mask` (int64 [batch, tokens]) and gives `embedding` (float [batch, 384]),
mean-pooled over the mask and of length one. Token type 0 is folded into the position table. Attention, GELU and layer
norms are ONNX Runtime's fused operators, so nothing is left for an optimizer to do at load.
fp32 equals a plain numpy forward pass to 1.4e-7; int8 keeps a cosine of at least 0.991 to fp32.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

FUSED = "com.microsoft"


def main(source: Path, target: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    if config["hidden_act"] != "gelu":
        raise ValueError(f"this converter knows gelu, the model wants {config['hidden_act']}")
    # position_ids is an integer buffer, 0, 1, 2, …: the graph slices the position table instead.
    weights = {name.removeprefix("bert."): value for name, value in load_file(source / "model.safetensors").items()}
    weights = {name: value.astype(np.float32) for name, value in weights.items() if value.dtype != np.int64}

    logging.disable(logging.WARNING)  # the quantizer advises a shape pass that these fused operators do not need
    with tempfile.TemporaryDirectory() as scratch:
        fp32 = Path(scratch) / "model.onnx"
        onnx.save(Builder(config, weights).model(), fp32)
        quantize_dynamic(
            fp32,
            target / "model_int8.onnx",
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Attention", "Gather"],
            per_channel=True,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
        )


class Builder:
    """Collects nodes and weights in the order a sentence passes them."""

    def __init__(self, config: dict, weights: dict[str, NDArray]) -> None:
        self.config = config
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        x = self.embed_tokens()
        mask = self.op("Cast", ["attention_mask"], "mask_int32", to=TensorProto.INT32)
        for layer in range(self.config["num_hidden_layers"]):
            x = self.attend(layer, x, mask)
            x = self.feed_forward(layer, x)
        self.pool(x)

        tokens = ["batch", "tokens"]
        graph = helper.make_graph(
            self.nodes,
            "sentence_embedding",
            [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", self.config["hidden_size"]])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(FUSED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def embed_tokens(self) -> str:
        w = self.weights
        words = self.constant("words", w["embeddings.word_embeddings.weight"])
        token_type_0 = w["embeddings.token_type_embeddings.weight"][0]
        positions = self.constant("positions", w["embeddings.position_embeddings.weight"] + token_type_0)

        length = self.op("Shape", ["input_ids"], "length", start=1, end=2)
        zero = self.constant("zero", np.array([0], np.int64))
        at_words = self.op("Gather", [words, "input_ids"], "at_words")
        at_positions = self.op("Slice", [positions, zero, length, zero], "at_positions")
        both = self.op("Add", [at_words, at_positions], "embedded")
        gain, shift = self.norm_weights("embeddings.LayerNorm", "embedded_norm")
        return self.op("LayerNormalization", [both, gain, shift], "embedded_norm", axis=-1, epsilon=self.config["layer_norm_eps"])

    def attend(self, layer: int, x: str, mask: str) -> str:
        w, prefix, name = self.weights, f"encoder.layer.{layer}.attention.", f"layer{layer}_attention"
        parts = [f"{prefix}self.{part}" for part in ("query", "key", "value")]
        kernel = self.constant(f"{name}_qkv", np.concatenate([w[f"{part}.weight"].T for part in parts], axis=1))
        bias = self.constant(f"{name}_qkv_bias", np.concatenate([w[f"{part}.bias"] for part in parts]))
        heads = self.config["num_attention_heads"]
        attended = self.op("Attention", [x, kernel, bias, mask], name, domain=FUSED, num_heads=heads)

        projected, bias = self.dense(attended, f"{prefix}output.dense", f"{name}_out")
        projected = self.op("Add", [projected, bias], f"{name}_out")
        return self.add_and_norm(projected, x, f"{prefix}output.LayerNorm", f"{name}_norm")

    def feed_forward(self, layer: int, x: str) -> str:
        prefix, name = f"encoder.layer.{layer}.", f"layer{layer}_forward"
        wide, bias = self.dense(x, f"{prefix}intermediate.dense", f"{name}_up")
        wide = self.op("BiasGelu", [wide, bias], f"{name}_gelu", domain=FUSED)
        narrow, bias = self.dense(wide, f"{prefix}output.dense", f"{name}_down")
        narrow = self.op("Add", [narrow, bias], f"{name}_down")
        return self.add_and_norm(narrow, x, f"{prefix}output.LayerNorm", f"{name}_norm")

    def pool(self, x: str) -> None:
        """The mean of the tokens that are really there, scaled to length one."""
        token_axis = self.constant("token_axis", np.array([1], np.int64))
        hidden_axis = self.constant("hidden_axis", np.array([2], np.int64))
        mask = self.op("Cast", ["attention_mask"], "mask_float", to=TensorProto.FLOAT)
        mask = self.op("Unsqueeze", [mask, hidden_axis], "mask_column")
        masked = self.op("Mul", [x, mask], "masked")
        total = self.op("ReduceSum", [masked, token_axis], "total", keepdims=0)
        count = self.op("ReduceSum", [mask, token_axis], "count", keepdims=0)
        count = self.op("Max", [count, self.constant("tiny", np.array(1e-9, np.float32))], "count_or_tiny")
        mean = self.op("Div", [total, count], "mean")
        self.op("LpNormalization", [mean], "embedding", axis=-1, p=2)

    def dense(self, x: str, key: str, name: str) -> tuple[str, str]:
        """The product, and the bias apart: some callers have an operator that adds it on the way."""
        kernel = self.constant(f"{name}_kernel", self.weights[f"{key}.weight"].T)
        bias = self.constant(f"{name}_bias", self.weights[f"{key}.bias"])
        return self.op("MatMul", [x, kernel], f"{name}_product"), bias

    def add_and_norm(self, x: str, residual: str, key: str, name: str) -> str:
        gain, shift = self.norm_weights(key, name)
        epsilon = self.config["layer_norm_eps"]
        return self.op("SkipLayerNormalization", [x, residual, gain, shift], name, domain=FUSED, epsilon=epsilon)

    def norm_weights(self, key: str, name: str) -> tuple[str, str]:
        # Not `_scale`: the quantizer names its own tensors so.
        w = self.weights
        return self.constant(f"{name}_gain", w[f"{key}.weight"]), self.constant(f"{name}_shift", w[f"{key}.bias"])

    def constant(self, name: str, value: NDArray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
