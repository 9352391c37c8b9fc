"""llama.cpp's own HTTP server on a model made here: one layer, random weights, a vocabulary of bytes. It knows nothing and answers in JSON,
because the schema leaves it no other way. Prints its address; ends when its standard input does.

    serve.py FOLDER SEED
"""

import os
import random
import struct
import sys

WIDTH, HEADS, INNER, CONTEXT = 64, 2, 32, 16384
TEXT, ARRAY, U32, F32, I32 = 8, 9, 4, 6, 5
SPECIAL = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
BYTES = [(f"<0x{n:02X}>", 6) for n in range(256)]
TOKENS = SPECIAL + BYTES


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def field(name, kind, value):
    pack = {U32: "<I", F32: "<f"}
    body = text(value) if kind == TEXT else struct.pack(pack[kind], value)
    return text(name) + struct.pack("<I", kind) + body


def array(name, kind, values):
    body = b"".join(text(v) if kind == TEXT else struct.pack({F32: "<f", I32: "<i"}[kind], v) for v in values)
    return text(name) + struct.pack("<IIQ", ARRAY, kind, len(values)) + body


def model(path, seed):
    dice = random.Random(seed)

    def weights(rows, width, scale):
        return [dice.gauss(0, scale) for _ in range(rows * width)]

    embedding = weights(len(TOKENS), WIDTH, 1.0)
    output = weights(len(TOKENS), WIDTH, 0.3)

    def follows(before, after, weight):
        """Random weights would quote random bytes without end; this one likes some bytes after others."""
        a, b = 3 + ord(before), 3 + ord(after)
        for i in range(WIDTH):
            output[b * WIDTH + i] += weight * embedding[a * WIDTH + i] / 8

    follows(":", "n", 2.0)  # a quote is null
    follows(":", "{", 1.0)
    follows(":", '"', 1.0)
    follows(":", "0", 1.5)  # a number is 0
    follows("[", "]", 2.0)  # a list is empty
    small = 0.02
    ones = [1.0] * WIDTH
    tensors = [
        ("token_embd.weight", (WIDTH, len(TOKENS)), embedding),
        ("output_norm.weight", (WIDTH,), ones),
        ("output.weight", (WIDTH, len(TOKENS)), output),
        ("blk.0.attn_norm.weight", (WIDTH,), ones),
        ("blk.0.ffn_norm.weight", (WIDTH,), ones),
    ]
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensors.append((f"blk.0.{name}.weight", (WIDTH, WIDTH), weights(WIDTH, WIDTH, small)))
    for name, shape in (("ffn_gate", (WIDTH, INNER)), ("ffn_up", (WIDTH, INNER)), ("ffn_down", (INNER, WIDTH))):
        tensors.append((f"blk.0.{name}.weight", shape, weights(shape[1], shape[0], small)))

    fields = [
        field("general.architecture", TEXT, "llama"),
        field("general.name", TEXT, "random"),
        field("llama.context_length", U32, CONTEXT),
        field("llama.embedding_length", U32, WIDTH),
        field("llama.block_count", U32, 1),
        field("llama.feed_forward_length", U32, INNER),
        field("llama.attention.head_count", U32, HEADS),
        field("llama.attention.head_count_kv", U32, HEADS),
        field("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        field("llama.rope.dimension_count", U32, WIDTH // HEADS),
        field("llama.vocab_size", U32, len(TOKENS)),
        field("tokenizer.ggml.model", TEXT, "llama"),
        array("tokenizer.ggml.tokens", TEXT, [t for t, _ in TOKENS]),
        array("tokenizer.ggml.scores", F32, [0.0] * len(TOKENS)),
        array("tokenizer.ggml.token_type", I32, [kind for _, kind in TOKENS]),
        field("tokenizer.ggml.unknown_token_id", U32, 0),
        field("tokenizer.ggml.bos_token_id", U32, 1),
        field("tokenizer.ggml.eos_token_id", U32, 2),
        field("tokenizer.chat_template", TEXT, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"),
    ]
    places, data = b"", b""
    for name, shape, values in tensors:
        places += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        places += struct.pack("<IQ", 0, len(data))
        data += struct.pack(f"<{len(values)}f", *values)
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)) + b"".join(fields) + places
    with open(path, "wb") as file:
        file.write(head + b"\0" * (-len(head) % 32) + data)


def main():
    folder, seed = sys.argv[1], int(sys.argv[2])
    path = os.path.join(folder, "random.gguf")
    model(path, seed)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {"random"}
    params.n_ctx = CONTEXT
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads have nothing to finish


main()
