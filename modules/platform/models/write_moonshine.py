"""Writes Moonshine's graphs anew from the weights of its `.ort` export: the same model in a fifth to an eighth of the nodes.

    write_moonshine.py SOURCE TARGET
    SOURCE holds   encoder_model.ort, decoder_model_merged.ort
    TARGET gets    encoder_model.onnx, decoder_first.onnx, decoder_with_past.onnx

The export computes positions, shapes and masks anew in every layer, keeps both kinds of decoder step behind one `If`, and
leaves the convolutions in float. Here the runtime's fused operators do all that, the weights stay as they are, and the widest
convolution becomes integer products like everything else: the encoder takes 0.67 of the time, a token 0.74, and the errors in
1882 words are 57 instead of 65 (which is chance: near ties that fall one way or the other). One rounding instead of two there
takes the demo calls from 9 errors to 37: on a telephone line it loses the "s". Bytes for the other wide convolution move the
output about ten times as far.
The output depends on the input alone: onnxruntime 1.23.2 and 1.31.1 write the same bytes.
"""

import math
import sys
import tempfile
from pathlib import Path

import numpy
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper, numpy_helper

LAYERS, HEADS, HEAD_DIM, HIDDEN, INNER, VOCABULARY = 6, 8, 36, 288, 1152, 32768
ROTATED = 32
"""Columns of each head that carry the position; the other four stand still."""
POSITIONS = 2048
"""Longest stretch in frames of the encoder (49 s) or tokens."""
EPSILON = 1e-5


def main(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        heard = load(source / "encoder_model.ort", Path(scratch))
        written = load(source / "decoder_model_merged.ort", Path(scratch))
    save(encoder(Weights(heard, "")), target / "encoder_model.onnx")
    decoder = Weights(written, "/model/decoder")
    save(decoder_first(decoder), target / "decoder_first.onnx")
    save(decoder_with_past(decoder), target / "decoder_with_past.onnx")


def load(source: Path, scratch: Path) -> GraphProto:
    """ONNX Runtime reads `.ort` and can write ONNX; with optimisation off it writes what it read."""
    plain = scratch / source.with_suffix(".onnx").name
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(plain)
    options.add_session_config_entry("session.save_model_format", "ONNX")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception:
        # It writes the decoder's file, then cannot load it again; the weights in it are whole.
        if not plain.exists():
            raise
    return onnx.load(plain).graph


def save(model: onnx.ModelProto, target: Path) -> None:
    onnx.save(model, target)


class Weights:
    """The export's tensors, found by the layer that uses them: their own names say nothing."""

    def __init__(self, graph: GraphProto, root: str) -> None:
        self.root = root
        self.tensors = {}
        self.makers = {}
        for part in [graph] + [a.g for node in graph.node if node.op_type == "If" for a in node.attribute]:
            self.tensors |= {t.name: t for t in part.initializer}
            self.makers |= {node.output[0]: node for node in part.node}

    def array(self, name: str) -> NDArray:
        return numpy_helper.to_array(self.tensors[name])

    def of(self, *outputs: str) -> list[NDArray]:
        """The constants that go into the first of these tensors that there is."""
        node = next(self.makers[name] for name in outputs if name in self.makers)
        return [self.array(name) for name in node.input if name in self.tensors]

    def product(self, layer: str) -> "Product":
        """The weights of a linear layer: [in, out] as unsigned bytes, with scale, zero point and bias."""
        at = f"{self.root}{layer}"
        node = next(self.makers[name] for name in (f"{at}/Add_output_0", f"{at}/MatMul_output_0", layer) if name in self.makers)
        quantized = next(i for i in node.input if i.endswith("_quantized") and i in self.tensors)
        name = quantized.removesuffix("_quantized")
        biases = [i for i in node.input if i in self.tensors and ".bias" in i]
        return Product(
            self.array(quantized),
            self.array(f"{name}_scale").reshape(1),
            self.array(f"{name}_zero_point").reshape(1),
            self.array(biases[0]) if biases else None,
        )

    def norm(self, layer: str) -> NDArray:
        return self.of(f"{self.root}{layer}/LayerNormalization_output_0", layer)[0]


class Product:
    def __init__(self, weights: NDArray, scale: NDArray, zero: NDArray, bias: NDArray | None) -> None:
        self.weights, self.scale, self.zero, self.bias = weights, scale, zero, bias

    @staticmethod
    def beside(parts: list["Product"]) -> "Product":
        """Several layers with one input as one: their columns side by side, each with its own scale."""
        per_column = lambda value, part: numpy.repeat(value, part.weights.shape[1])
        return Product(
            numpy.concatenate([p.weights for p in parts], axis=1),
            numpy.concatenate([per_column(p.scale, p) for p in parts]),
            numpy.concatenate([per_column(p.zero, p) for p in parts]),
            None,
        )

    @staticmethod
    def of(weights: NDArray, bias: NDArray) -> "Product":
        """Rounds float weights [in, out] to bytes, each column by its largest."""
        scale = (numpy.abs(weights).max(axis=0) / numpy.float32(127)).astype(numpy.float32)
        whole = numpy.rint(weights / scale).astype(numpy.int32) + 128
        return Product(whole.astype(numpy.uint8), scale, numpy.full(len(scale), 128, numpy.uint8), bias)


class Writer:
    """Collects nodes and constants of one graph."""

    def __init__(self) -> None:
        self.nodes = []
        self.constants = {}

    def constant(self, name: str, value: NDArray) -> str:
        self.constants[name] = numpy_helper.from_array(numpy.ascontiguousarray(value), name)
        return name

    def add(self, kind: str, inputs: list[str], outputs: str | list[str], domain: str = "", **attributes: object) -> str:
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def fused(self, kind: str, inputs: list[str], outputs: str | list[str], **attributes: object) -> str:
        return self.add(kind, inputs, outputs, domain="com.microsoft", **attributes)

    def product(self, x: str, layer: Product, name: str) -> str:
        """x times the layer's weights; x is rounded to bytes by its own range."""
        return self.fused("DynamicQuantizeMatMul", [x, *self.layer(layer, name)], name)

    def layer(self, layer: Product, name: str) -> list[str]:
        inputs = [
            self.constant(f"{name}.weights", layer.weights),
            self.constant(f"{name}.scale", layer.scale if len(layer.scale) > 1 else layer.scale.reshape(())),
            self.constant(f"{name}.zero", layer.zero if len(layer.zero) > 1 else layer.zero.reshape(())),
        ]
        return inputs + ([self.constant(f"{name}.bias", layer.bias)] if layer.bias is not None else [])

    def norm(self, x: str, weight: NDArray, name: str) -> str:
        return self.add("LayerNormalization", [x, self.constant(f"{name}.weight", weight)], name, epsilon=EPSILON, axis=-1)

    def add_and_norm(self, x: str, more: str, weight: NDArray, name: str) -> tuple[str, str]:
        """(normalized sum, sum)"""
        outputs = [name, "", "", f"{name}.sum"]
        self.fused("SkipLayerNormalization", [x, more, self.constant(f"{name}.weight", weight)], outputs, epsilon=EPSILON)
        return name, f"{name}.sum"

    def rotary(self, x: str, position: str, name: str) -> str:
        inputs = [x, position, "rotary.cos", "rotary.sin"]
        return self.fused("RotaryEmbedding", inputs, name, interleaved=1, num_heads=HEADS, rotary_embedding_dim=ROTATED)

    def rotary_tables(self) -> None:
        """[positions, 16]. By the C library in double precision: the same bytes on every machine."""
        rates = [numpy.float32(10_000 ** (-i / (ROTATED // 2))) for i in range(ROTATED // 2)]
        angles = [[float(numpy.float32(position) * rate) for rate in rates] for position in range(POSITIONS)]
        for name, function in (("cos", math.cos), ("sin", math.sin)):
            self.constant(f"rotary.{name}", numpy.array([[function(a) for a in row] for row in angles], numpy.float32))

    def self_attention(self, x: str, weights: Weights, layer: str, position: str, name: str, **past: object) -> str:
        """`past`: keys and values before, and the names of those after. With it, no token sees a later one."""
        parts = [weights.product(f"{layer}/self_attn/{p}_proj") for p in "qkv"]
        together = self.product(x, Product.beside(parts), f"{name}.qkv")
        q, k, v = f"{name}.q", f"{name}.k", f"{name}.v"
        self.add("Split", [together], [q, k, v], axis=-1, num_outputs=3)
        q, k = self.rotary(q, position, f"{q}.turned"), self.rotary(k, position, f"{k}.turned")
        inputs = [q, k, v] + (["", "", "", *past["before"]] if past.get("before") else [])
        outputs = [f"{name}.seen", *past.get("after", [])]
        self.fused("MultiHeadAttention", inputs, outputs, num_heads=HEADS, unidirectional=int("after" in past))
        return self.product(outputs[0], weights.product(f"{layer}/self_attn/o_proj"), f"{name}.out")

    def model(self, name: str, inputs: list, outputs: list) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def encoder(weights: Weights) -> onnx.ModelProto:
    """input_values [1, samples] to last_hidden_state [1, frames, 288].

    Frames come from three convolutions without padding, 127 samples wide in steps of 64, then 7 by 3, then 3 by 2.
    """
    w = Writer()
    w.rotary_tables()
    x = w.add("Unsqueeze", ["input_values", w.constant("one", numpy.array([1], numpy.int64))], "sound")
    x = w.add("Conv", [x, w.constant("conv1.weight", weights.of("/Tanh_output_0")[0])], "conv1", strides=[64])
    x = w.add("Tanh", [x], "conv1.bounded")
    # One group over everything: normalized as a single row, then put right per channel.
    x = w.add("Reshape", [x, w.constant("row", numpy.array([0, 1, -1], numpy.int64))], "conv1.row")
    unit, nothing = w.constant("unit", numpy.ones(1, numpy.float32)), w.constant("nothing", numpy.zeros(1, numpy.float32))
    x = w.add("InstanceNormalization", [x, unit, nothing], "conv1.normal.row", epsilon=EPSILON)
    x = w.add("Reshape", [x, w.constant("channels", numpy.array([0, HIDDEN, -1], numpy.int64))], "conv1.normal")
    x = w.add("Transpose", [x], "conv1.frames", perm=[0, 2, 1])
    # The affine part of the normalization goes into the next weights.
    (gain,), (offset,) = weights.of("/groupnorm/Mul_output_0"), weights.of("/groupnorm/Add_output_0")
    wide, bias = weights.of("/conv2/Conv_output_0")
    bias = bias + (wide * offset).sum(axis=(1, 2), dtype=numpy.float64).astype(numpy.float32)
    x = convolution(w, x, wide * gain, bias, 3, "conv2")
    x = w.fused("Gelu", [x], "conv2.active")
    # Stays in float: a few of its inputs are a hundred times the others, and bytes lose those.
    x = w.add("Transpose", [x], "conv2.channels", perm=[0, 2, 1])
    weight, bias = weights.of("/conv3/Conv_output_0")
    x = w.add("Conv", [x, w.constant("conv3.weight", weight), w.constant("conv3.bias", bias)], "conv3", strides=[2])
    x = w.fused("Gelu", [x], "conv3.active")
    x = w.add("Transpose", [x], "conv3.frames", perm=[0, 2, 1])
    start = w.constant("start", numpy.array([0], numpy.int64))
    normal = w.norm(x, weights.norm("/layers.0/input_layernorm"), "layer0.before")
    for n in range(LAYERS):
        layer = f"/layers.{n}"
        out = w.self_attention(normal, weights, layer, start, f"layer{n}.self")
        normal, x = w.add_and_norm(x, out, weights.norm(f"{layer}/post_attention_layernorm"), f"layer{n}.middle")
        inner = w.product(normal, weights.product(f"{layer}/mlp/fc1"), f"layer{n}.wide")
        inner = w.fused("Gelu", [inner], f"layer{n}.active")
        out = w.product(inner, weights.product(f"{layer}/mlp/fc2"), f"layer{n}.narrow")
        last = n + 1 == LAYERS
        after = weights.norm("last_hidden_state" if last else f"/layers.{n + 1}/input_layernorm")
        normal, x = w.add_and_norm(x, out, after, "last_hidden_state" if last else f"layer{n + 1}.before")
    return w.model("encoder", [floats("input_values", 1, "samples")], [floats("last_hidden_state", 1, "frames", HIDDEN)])


def convolution(w: Writer, x: str, weight: NDArray, bias: NDArray, stride: int, name: str) -> str:
    """A convolution over frames [1, frames, in] as integer products: each row of their input holds the frames under the kernel.

    On a telephone line some channels are a hundred times louder than others that matter as much. So each channel is first
    scaled by its largest weight, which leaves the weights alike, and then rounded twice: to bytes, and the rest to bytes.
    """
    out_size, in_size, width = weight.shape
    scale = numpy.abs(weight).max(axis=(0, 2))
    scale = numpy.maximum(scale, scale.max() / numpy.float32(1000))
    x = w.add("Mul", [x, w.constant(f"{name}.importance", scale)], f"{name}.scaled")
    # [out, in, width] to rows in the order (frame, channel).
    flat = (weight / scale[None, :, None]).transpose(2, 1, 0).reshape(width * in_size, out_size)
    weights, scales, zeros, offset = w.layer(Product.of(flat, bias), name)
    ints = lambda label, *values: w.constant(f"{name}.{label}", numpy.array(values, numpy.int64))

    w.add("Shape", [x], f"{name}.frames", start=1, end=2)
    rows = w.add("Sub", [f"{name}.frames", ints("overlap", width)], f"{name}.room")
    rows = w.add("Div", [rows, ints("stride", stride)], f"{name}.steps")
    rows = w.add("Add", [rows, ints("first", 1)], f"{name}.rows")
    groups = -(-width // stride)
    whole = w.add("Add", [rows, ints("groups", groups - 1)], f"{name}.whole")
    length = w.add("Mul", [whole, f"{name}.stride"], f"{name}.length")
    begin, axis, shape = ints("from", 0), ints("axis", 1), ints("shape", 1, -1, stride * in_size)
    filling = w.constant(f"{name}.filling", numpy.zeros((1, groups * stride, in_size), numpy.uint8))
    bounds = []
    for group in range(groups):
        start = ints(f"begin{group}", group) if group else begin
        end = w.add("Add", [rows, start], f"{name}.end{group}") if group else rows
        columns = min(stride, width - group * stride) * in_size
        if columns < stride * in_size:
            start = w.add("Concat", [start, begin], f"{name}.begins{group}", axis=0)
            end = w.add("Concat", [end, ints(f"columns{group}", columns)], f"{name}.ends{group}", axis=0)
        bounds.append([start, end, ints("axes", 1, 2) if columns < stride * in_size else axis])

    def rounded(x: str, name: str, bias: list[str]) -> str:
        """Rows come from groups of `stride` frames side by side: a kernel covers whole groups and the beginning of the next."""
        w.add("DynamicQuantizeLinear", [x], [f"{name}.bytes", f"{name}.range", f"{name}.middle"])
        # Filled up to whole groups; what is filled in is under no kernel.
        filled = w.add("Concat", [f"{name}.bytes", filling], f"{name}.filled", axis=1)
        filled = w.add("Slice", [filled, begin, length, axis], f"{name}.cut")
        grouped = w.add("Reshape", [filled, shape], f"{name}.grouped")
        parts = [w.add("Slice", [grouped, *bound], f"{name}.part{n}") for n, bound in enumerate(bounds)]
        under = w.add("Concat", parts, f"{name}.under", axis=2)
        return w.fused("MatMulIntegerToFloat", [under, weights, f"{name}.range", scales, f"{name}.middle", zeros, *bias], name)

    coarse = rounded(x, f"{name}.coarse", [offset])
    kept = w.add("DequantizeLinear", [f"{coarse}.bytes", f"{coarse}.range", f"{coarse}.middle"], f"{name}.kept")
    rest = w.add("Sub", [x, kept], f"{name}.rest")
    return w.add("Add", [coarse, rounded(rest, f"{name}.fine", [])], name)


def decoder_first(weights: Weights) -> onnx.ModelProto:
    """The first step: input_ids [batch, tokens] begins with `bos`; more tokens are verified at once.

    encoder_hidden_states [batch, frames, 288], frame_mask [batch, frames] 1 where heard. Gives logits
    [batch, tokens, 32768], and keys and values: present.N.decoder.* of the tokens, present.N.encoder.* of the sound.
    """
    w = Writer()
    pairs = [(n, p) for n in range(LAYERS) for p in "kv"]
    layers = Product.beside([weights.product(f"/layers.{n}/encoder_attn/{p}_proj") for n, p in pairs])
    bytes_, scale, zero = "heard.bytes", "heard.range", "heard.middle"
    w.add("DynamicQuantizeLinear", ["encoder_hidden_states"], [bytes_, scale, zero])
    weights_, scales, zeros = w.layer(layers, "heard.layers")
    heard = w.fused("MatMulIntegerToFloat", [bytes_, weights_, scale, scales, zero, zeros], "heard.all")
    shape = w.constant("heads", numpy.array([0, 0, 2 * LAYERS * HEADS, HEAD_DIM], numpy.int64))
    heard = w.add("Reshape", [heard, shape], "heard.heads")
    heard = w.add("Transpose", [heard], "heard.by_head", perm=[0, 2, 1, 3])
    w.add("Split", [heard], [f"present.{n}.encoder.{'key' if p == 'k' else 'value'}" for n, p in pairs], axis=1, num_outputs=len(pairs))
    start = w.constant("start", numpy.array([0], numpy.int64))
    steps(w, weights, start, lambda n: {}, "present.{}.encoder.{}")
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("frame_mask", TensorProto.INT32, ["batch", "frames"]),
        floats("encoder_hidden_states", "batch", "frames", HIDDEN),
    ]
    kept = [floats(f"present.{n}.encoder.{p}", "batch", HEADS, "frames", HEAD_DIM) for n in range(LAYERS) for p in ("key", "value")]
    written = [floats(f"present.{n}.decoder.{p}", "batch", HEADS, "tokens", HEAD_DIM) for n in range(LAYERS) for p in ("key", "value")]
    return w.model("decoder_first", inputs, [floats("logits", "batch", "tokens", VOCABULARY), *written, *kept])


def decoder_with_past(weights: Weights) -> onnx.ModelProto:
    """Every later step: one token of each of the batch. What the first step said of the sound does not change."""
    w = Writer()
    before = lambda n: [f"past_key_values.{n}.decoder.{p}" for p in ("key", "value")]
    position = w.add("Shape", [before(0)[0]], "position", start=2, end=3)
    steps(w, weights, position, lambda n: {"before": before(n)}, "past_key_values.{}.encoder.{}")
    of = lambda kind, dimension: [
        floats(f"past_key_values.{n}.{kind}.{p}", "batch", HEADS, dimension, HEAD_DIM) for n in range(LAYERS) for p in ("key", "value")
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("frame_mask", TensorProto.INT32, ["batch", "frames"]),
        *of("decoder", "past"),
        *of("encoder", "frames"),
    ]
    written = [
        floats(f"present.{n}.decoder.{p}", "batch", HEADS, "past_and_tokens", HEAD_DIM) for n in range(LAYERS) for p in ("key", "value")
    ]
    return w.model("decoder_with_past", inputs, [floats("logits", "batch", "tokens", VOCABULARY), *written])


def steps(w: Writer, weights: Weights, position: str, past, heard: str) -> None:
    """What both kinds of decoder step have in common: embedding, layers, logits."""
    w.rotary_tables()
    table = next(name for name in weights.tensors if "embed_tokens" in name and name.endswith("_quantized"))
    name = table.removesuffix("_quantized")
    w.add("Gather", [w.constant("embedding.bytes", weights.array(table)), "input_ids"], "token.bytes")
    scale = w.constant("embedding.scale", weights.array(f"{name}_scale").reshape(()))
    zero = w.constant("embedding.zero", weights.array(f"{name}_zero_point").reshape(()))
    x = w.add("DequantizeLinear", ["token.bytes", scale, zero], "token")
    normal = w.norm(x, weights.norm("/layers.0/input_layernorm"), "layer0.before")
    for n in range(LAYERS):
        layer = f"/layers.{n}"
        after = [f"present.{n}.decoder.{p}" for p in ("key", "value")]
        out = w.self_attention(normal, weights, layer, position, f"layer{n}.self", after=after, **past(n))
        normal, x = w.add_and_norm(x, out, weights.norm(f"{layer}/post_attention_layernorm"), f"layer{n}.between")
        q = w.product(normal, weights.product(f"{layer}/encoder_attn/q_proj"), f"layer{n}.cross.q")
        kv = [heard.format(n, p) for p in ("key", "value")]
        w.fused("MultiHeadAttention", [q, *kv, "", "frame_mask"], f"layer{n}.cross.seen", num_heads=HEADS)
        out = w.product(f"layer{n}.cross.seen", weights.product(f"{layer}/encoder_attn/o_proj"), f"layer{n}.cross.out")
        normal, x = w.add_and_norm(x, out, weights.norm(f"{layer}/final_layernorm"), f"layer{n}.middle")
        inner = w.product(normal, weights.product(f"{layer}/mlp/fc1"), f"layer{n}.wide")
        w.add("Split", [inner], [f"layer{n}.value", f"layer{n}.gate"], axis=-1, num_outputs=2)
        gate = w.fused("QuickGelu", [f"layer{n}.gate"], f"layer{n}.open", alpha=1.0)
        inner = w.add("Mul", [f"layer{n}.value", gate], f"layer{n}.gated")
        out = w.product(inner, weights.product(f"{layer}/mlp/fc2"), f"layer{n}.narrow")
        last = n + 1 == LAYERS
        following = weights.norm("/norm" if last else f"/layers.{n + 1}/input_layernorm")
        normal, x = w.add_and_norm(x, out, following, "written" if last else f"layer{n + 1}.before")
    w.product(normal, weights.product("logits"), "logits")


def floats(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
