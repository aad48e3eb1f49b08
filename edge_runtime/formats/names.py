"""Names that the exporter writes into graphs and adapters, and that the engine and the server read.

Frozen weights enter a graph under their Hugging Face parameter name (``bert.encoder.layer.0.output.dense.weight``).
All trainable state is *flat*: one float32 vector ``[N]`` in the order of
:class:`edge_runtime.formats.adapter.AdapterLayout`, split inside the graph, so that no step touches tensors one by one
in Python.
"""

from __future__ import annotations

from typing import Final

# Files of an artifact.
MANIFEST_FILE: Final = "manifest.json"
TRAINING_GRAPH: Final = "training.onnx"
EVALUATION_GRAPH: Final = "evaluation.onnx"
OPTIMIZER_GRAPH: Final = "optimizer.onnx"
EMBEDDING_STAGE: Final = "stage.embedding.onnx"
BLOCK_STAGE: Final = "stage.block.onnx"
BLOCK_BACKWARD_STAGE: Final = "stage.block_backward.onnx"
FIRST_BACKWARD_STAGE: Final = "stage.first_backward.onnx"
PLAIN_BLOCK_STAGE: Final = "stage.plain_block.onnx"
LAST_BLOCK_STAGE: Final = "stage.last_block.onnx"
LAST_BACKWARD_STAGE: Final = "stage.last_backward.onnx"
HEAD_STAGE: Final = "stage.head.onnx"
SCORE_STAGE: Final = "stage.score.onnx"
BASE_FILE: Final = "base.safetensors"
INITIAL_FILE: Final = "initial.safetensors"
TOKENIZER_FILE: Final = "tokenizer.json"
CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"
STAGES: Final = (
    EMBEDDING_STAGE,
    BLOCK_STAGE,
    BLOCK_BACKWARD_STAGE,
    FIRST_BACKWARD_STAGE,
    PLAIN_BLOCK_STAGE,
    LAST_BLOCK_STAGE,
    LAST_BACKWARD_STAGE,
    HEAD_STAGE,
    SCORE_STAGE,
)
"""Graphs of the staged mode. There is a plain block, without factors, if not all blocks are tuned. The last block has
its own graphs if only the first token of a sequence is scored."""

# Inputs of the training and the evaluation graph, beside the frozen weights.
INPUT_IDS: Final = "input_ids"  # int64 [batch, length]
ATTENTION_MASK: Final = "attention_mask"  # int64 [batch, length], 1 = token, 0 = padding (on the right)
ROWS: Final = "rows"  # int64 [targets], which of the batch * length positions are scored, ascending (causal-lm only)
TARGETS: Final = "targets"  # int64 [targets], the class or token to predict at each of them
PARAMS: Final = "params"  # float32 [N], flat trainable state
SPLIT_SIZES: Final = "split_sizes"  # int64 [K], element counts of the K trainable tensors, in layout order
RANK: Final = "rank"  # int64 [1]
LORA_SCALING: Final = "lora_scaling"  # float32 [], alpha / rank
LOSS_SCALE: Final = "loss_scale"  # float32 [], 1 / number of targets (training graph only)
GRAD_ACCUM: Final = "grad_accum"  # float32 [N], gradient accumulated so far (training graph only)

# Outputs of the training graph.
LOSS: Final = "loss"  # float32 [], loss_scale * sum over the targets of the micro-batch
GRAD_ACCUM_OUT: Final = "grad_accum.out"  # float32 [N], grad_accum + gradient of loss

# Outputs of the evaluation graph.
LOSS_SUM: Final = "loss_sum"  # float32 [], sum of the negative log-likelihoods (nats)
NUM_CORRECT: Final = "num_correct"  # int64 [], targets whose arg-max score is right
LOGITS: Final = "logits"  # float32 [targets, labels]; text-classification only

# Stages as graphs of their own (staged mode). Weights of a block enter without its prefix; PARAMS, SPLIT_SIZES and
# GRAD_ACCUM are the block's (or the head's) part of the flat vectors.
# Embedding: rows of the word embedding, and INPUT_IDS as indices of them, to HIDDEN_OUT and a context of other names.
# Block: HIDDEN and the context to HIDDEN_OUT; a last block with its own graphs outputs [batch, 1, H]. In a model with
# norms after the sums (Manifest.post_norm) the other blocks with factors output RESIDUAL too.
# Backward of a block: the same inputs, RESIDUAL if the forward outputs it, and HIDDEN_GRAD to GRAD_ACCUM_OUT and
# INPUT_GRAD; the first tuned block has no INPUT_GRAD.
# Head: HIDDEN of the scored positions to LOSS, INPUT_GRAD and, if the head is trained, GRAD_ACCUM_OUT.
# Score: HIDDEN of the scored positions to the outputs of the evaluation graph.
HIDDEN: Final = "hidden"  # float32 [batch, length, H], or [targets, H] for head and score
HIDDEN_OUT: Final = "hidden.out"  # float32 [batch, length or 1, H]
RESIDUAL: Final = "residual"  # float32 [batch * length, H], the sum that the last norm of a block takes
HIDDEN_GRAD: Final = "hidden.grad"  # float32, gradient with respect to HIDDEN_OUT, in its shape
INPUT_GRAD: Final = "input.grad"  # float32, gradient with respect to HIDDEN, in its shape

# Optimizer graph (AdamW, decoupled decay, clipping by global norm). Inputs: PARAMS, GRADS and these.
GRADS: Final = "grads"  # float32 [N], summed over micro-batches
EXP_AVG: Final = "exp_avg"  # float32 [N]
EXP_AVG_SQ: Final = "exp_avg_sq"  # float32 [N]
GRAD_SCALE: Final = "grad_scale"  # float32 [], 1 / number of micro-batches
LEARNING_RATE: Final = "learning_rate"  # float32 []
WEIGHT_DECAY: Final = "weight_decay"  # float32 []
MAX_GRAD_NORM: Final = "max_grad_norm"  # float32 [], inf = no clipping
BETA1: Final = "beta1"  # float32 []
BETA2: Final = "beta2"  # float32 []
EPSILON: Final = "epsilon"  # float32 []
BIAS_CORRECTION1: Final = "bias_correction1"  # float32 [], 1 - beta1 ** step
BIAS_CORRECTION2: Final = "bias_correction2"  # float32 [], 1 - beta2 ** step
# Its outputs: the three vectors with this suffix, and the norm before clipping.
OUT_SUFFIX: Final = ".out"
GRAD_NORM: Final = "grad_norm"  # float32 []

# Names of other tensors in payloads.
IMPORTANCE_PREFIX: Final = "importance/"
MERGED_A_SUFFIX: Final = ".merged_A.weight"
MERGED_B_SUFFIX: Final = ".merged_B.weight"

MEMORY_PREFIX: Final = "memory."
"""Prefix of uint8 tensors in a round's global adapter: the state of the server's method, not a part of the model."""

CHECKPOINT_FILE: Final = "model.safetensors"
"""All weights of a model, as transformers names and reads them."""

POOL: Final = "pool"
"""Name of the octets with the pool in the file of a round's global model; see :mod:`.seed_pool`."""

IGNORE_LABEL: Final = -100
"""Label of a position that is not a target (PyTorch's ``ignore_index``)."""


def lora_a(module: str) -> str:
    """Name of the A factor, float32 ``[rank, in]``, of a LoRA target: PEFT's suffix on the module's path.

    >>> lora_a("model.layers.0.mlp.up_proj")
    'model.layers.0.mlp.up_proj.lora_A.weight'
    """
    return f"{module}.lora_A.weight"


def lora_b(module: str) -> str:
    """Name of the B factor, float32 ``[out, rank]``, of a LoRA target.

    >>> lora_b("model.layers.0.mlp.up_proj")
    'model.layers.0.mlp.up_proj.lora_B.weight'
    """
    return f"{module}.lora_B.weight"


def is_lora_a(name: str) -> bool:
    """Return whether a tensor of an adapter is an A factor.

    >>> is_lora_a(lora_a("model.layers.0.mlp.up_proj")), is_lora_a(lora_b("model.layers.0.mlp.up_proj"))
    (True, False)
    """
    return name.endswith(".lora_A.weight")


def merged_a(module: str) -> str:
    """Name of the merged A factor, float32 ``[m, in]``, of a LoRA target.

    >>> merged_a("model.layers.0.mlp.up_proj")
    'model.layers.0.mlp.up_proj.merged_A.weight'
    """
    return module + MERGED_A_SUFFIX


def merged_b(module: str) -> str:
    """Name of the merged B factor, float32 ``[out, m]``, of a LoRA target.

    >>> merged_b("model.layers.0.mlp.up_proj")
    'model.layers.0.mlp.up_proj.merged_B.weight'
    """
    return module + MERGED_B_SUFFIX


def importance(layer: int, group: str) -> str:
    """Name of the scores, float32 ``[num_kept]``, of a group.

    >>> importance(3, "heads")
    'importance/3.heads'
    """
    return f"{IMPORTANCE_PREFIX}{layer}.{group}"
