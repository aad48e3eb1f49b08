"""A compact model on the device: classify, generate, evaluate; with onnxruntime and tokenizers, without torch."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np

from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Dataset, eval_batches
from edge_runtime.engine.errors import GraphError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.session import Graph
from edge_runtime.formats.manifest import FORMAT_VERSION, Manifest
from edge_runtime.inference.decoder import Decoder
from edge_runtime.inference.description import MODEL_FILE, CompactInfo, read_info
from edge_runtime.inference.detokenizer import IncrementalDetokenizer
from edge_runtime.inference.errors import CompactModelError, PromptError, SamplingError, WrongTaskError
from edge_runtime.inference.forward import Encoder
from edge_runtime.inference.sampling import Sampling
from edge_runtime.inference.scoring import Float32, Int64, score_batch, softmax
from edge_runtime.inference.text import TextCodec

_BATCH_SIZE: Final = 16
_MAX_LENGTH: Final = 128
_WARM_UP_REPEATS: Final = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The most likely class of a text."""

    label: str
    score: float
    """Probability of the class (softmax), in (0, 1]."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one unit of work at batch size 1 on this machine."""

    median_ms: float
    unit: Literal["example", "token"]
    """Example of ``length`` tokens (text-classification), or a further token after ``length`` (causal-lm)."""
    length: int
    num_repeats: int


class CompactModel:
    """A compact model in memory. Make it with :meth:`open`.

    Attributes:
        directory: folder of the files.
        info: description of the model.
    """

    def __init__(self, directory: Path, info: CompactInfo, graph: Graph) -> None:
        self.directory = directory
        self.info = info
        self._model: Encoder | Decoder = Decoder(graph) if info.task == "causal-lm" else Encoder(graph)
        self._artifact = _as_artifact(directory, info)
        self._text = TextCodec(self._artifact)

    @classmethod
    def open(cls, directory: str | Path, num_threads: int | None = None, *, verify: bool = True) -> Self:
        """Load a compact model.

        Args:
            directory: of ``fedspine compact``.
            num_threads: threads for one operator, 1 or more; None = one for each physical core.
            verify: whether the files' SHA-256 are checked.

        Raises:
            CompactModelError: no such directory, or a file is missing, damaged, or no graph that onnxruntime loads.
            CompactVersionError: made by a release with another format.
            InsufficientMemoryError: too little memory.
        """
        directory = Path(directory)
        info = read_info(directory, verify=verify)
        try:
            graph = Graph(directory / MODEL_FILE, num_threads=num_threads or 0)
        except GraphError as error:
            msg = f"{error}; make the compact model again"
            raise CompactModelError(msg) from error
        return cls(directory, info, graph)

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """The class of each text, in the order given; a text beyond the model's longest sequence is cut.

        Raises:
            WrongTaskError: the model generates text.
            PromptError: a text that is not valid Unicode (half of a surrogate pair).
            InferenceError: onnxruntime failed.
        """
        model = self._encoder()
        if not texts:
            return []
        sequences = [self._text.encode(text) for text in texts]
        dataset = Dataset(
            tokens=np.concatenate([np.array(ids, np.int32) for ids in sequences]),
            offsets=np.cumsum([0, *(len(ids) for ids in sequences)]).astype(np.int64),
            labels=np.zeros(len(texts), np.int64),
            pad_token_id=self.info.text.pad_token_id,
        )
        out: dict[int, Prediction] = {}
        order = np.argsort(-dataset.lengths, kind="stable")
        for start in range(0, order.size, _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            batch = dataset.batch(rows)
            scores = softmax(model.forward(batch.input_ids, batch.attention_mask))
            for row, best, score in zip(rows.tolist(), scores.argmax(axis=1), scores.max(axis=1), strict=True):
                out[row] = Prediction(label=self.info.labels[best], score=float(score))
        return [out[row] for row in range(len(texts))]

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        rng: np.random.Generator | None = None,
    ) -> Iterator[str]:
        """Text that continues a prompt, piece by piece, without the prompt.

        Ends with the end-of-text token, after ``max_new_tokens``, or where the model's positions end.

        Args:
            prompt: text to continue; may be empty if the tokenizer begins every text with a token.
            max_new_tokens: most tokens to generate, 1 or more.
            temperature: 0 = greedy; otherwise tokens are drawn, and a lower value favours the likelier tokens.
            top_k: draw only from this many of the most likely tokens; 0 = all.
            rng: source of randomness; needed unless greedy.

        Raises:
            WrongTaskError: the model classifies.
            PromptError: the prompt has no token, leaves no room for an answer, or is not valid Unicode.
            SamplingError: a parameter is outside its range, or ``rng`` is missing.
            InferenceError: onnxruntime failed (while iterating).
        """
        self._decoder()
        prompt_ids = self._text.encode_prompt(prompt)
        sampling = Sampling(temperature=temperature, top_k=top_k)
        ids = self.generate_ids(prompt_ids, max_new_tokens=max_new_tokens, sampling=sampling, rng=rng)
        return self._pieces(prompt_ids, ids)

    def generate_ids(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        rng: np.random.Generator | None = None,
    ) -> Iterator[int]:
        """Token ids that continue a prompt, without the end-of-text token. See :meth:`generate`; None = greedy.

        Raises:
            WrongTaskError: the model classifies.
            PromptError: the prompt has no token, one outside the vocabulary, or leaves no room for an answer.
            SamplingError: a parameter is outside its range, or ``rng`` is missing.
            InferenceError: onnxruntime failed (while iterating).
        """
        model = self._decoder()
        sampling = sampling or Sampling()
        if max_new_tokens < 1:
            msg = f"{max_new_tokens} tokens to generate, expected 1 or more"
            raise SamplingError(msg)
        if sampling.temperature > 0 and rng is None:
            msg = f"temperature {sampling.temperature} draws at random, but no generator was given: pass one"
            raise SamplingError(msg)
        room = self.info.max_length - len(prompt_ids)
        if not prompt_ids or room < 1 or not 0 <= min(prompt_ids) <= max(prompt_ids) < self.info.text.vocab_size:
            msg = (
                f"prompt of {len(prompt_ids)} tokens, expected 1 to {self.info.max_length - 1} "
                f"of the {self.info.text.vocab_size} in the vocabulary: change the prompt"
            )
            raise PromptError(msg)
        tokens = model.tokens(prompt_ids, sampling, rng or np.random.default_rng(0))
        return self._until_eos(islice(tokens, min(max_new_tokens, room)))

    def evaluate(
        self, data: str | Path | Dataset, *, max_length: int | None = None, batch_size: int = 8
    ) -> EvaluationResult:
        """Quality on a file of examples, as the evaluation graph of the artifact measures it.

        Tokenisation, windows and batches are those of :func:`edge_runtime.engine.data.load_examples`.

        Args:
            data: JSON lines, or examples that are loaded already.
            max_length: tokens of a window (causal-lm), or at which an example is cut (text-classification); None = 128,
                or the model's longest sequence where that is shorter.
            batch_size: sequences at a time, 1 or more.

        Raises:
            DataInvalidError: see ``load_examples``, as for DataEmptyError, UnknownLabelError and LengthError.
            InferenceError: onnxruntime failed.
        """
        if not isinstance(data, Dataset):
            length = min(_MAX_LENGTH, self.info.max_length) if max_length is None else max_length
            data = load_examples(Path(data), self._artifact, length)
        results = [
            score_batch(self._model.forward(batch.input_ids, batch.attention_mask), batch)
            for batch in eval_batches(data, batch_size)
        ]
        return EvaluationResult(
            loss_sum=sum(result.loss_sum for result in results),
            num_targets=sum(result.num_targets for result in results),
            num_correct=sum(result.num_correct for result in results),
        )

    def logits(self, input_ids: Int64, attention_mask: Int64) -> Float32:
        """Scores float32 ``[B, labels]`` or ``[B, L, vocab]`` of sequences; both arguments int64 ``[B, L]``.

        Raises:
            InferenceError: onnxruntime failed.
        """
        return self._model.forward(input_ids, attention_mask)

    def logits_in_steps(self, input_ids: Int64, num_first: int) -> Float32:
        """As :meth:`logits`, but with the cache as in generation: ``num_first`` tokens at once, the others one by one.

        Raises:
            WrongTaskError: the model classifies.
            InferenceError: onnxruntime failed.
        """
        return self._decoder().forward_in_steps(input_ids, num_first)

    def latency(
        self, *, length: int = 64, num_repeats: int = 20, clock: Callable[[], float] = time.perf_counter
    ) -> Latency:
        """Median time at batch size 1: of one example of ``length`` tokens, or of one further token after ``length``.

        Two repeats warm up and do not count. A decoder's time includes the greedy choice, but not reading the prompt;
        its cache grows by a token with each repeat. Tokenisation is not included.

        Args:
            length: tokens; cut to the model's positions.
            num_repeats: measured repeats, 1 or more.
            clock: monotonic seconds.

        Raises:
            InferenceError: onnxruntime failed.
        """
        length = max(1, min(length, self.info.max_length - _WARM_UP_REPEATS - num_repeats - 1))
        ids = (np.arange(length, dtype=np.int64) * 7919) % self.info.text.vocab_size
        if isinstance(self._model, Decoder):
            tokens = self._model.tokens(ids.tolist(), Sampling(), np.random.default_rng(0))
            next(tokens)
            times = _measure(lambda: next(tokens), num_repeats, clock)
        else:
            mask = np.ones((1, length), np.int64)
            times = _measure(lambda: self._model.forward(ids[None], mask), num_repeats, clock)
        return Latency(
            median_ms=1000.0 * statistics.median(times),
            unit="token" if isinstance(self._model, Decoder) else "example",
            length=length,
            num_repeats=num_repeats,
        )

    def _encoder(self) -> Encoder:
        if isinstance(self._model, Encoder):
            return self._model
        msg = f"{self.directory} generates text, it does not classify: use `fedspine-edge generate`"
        raise WrongTaskError(msg)

    def _decoder(self) -> Decoder:
        if isinstance(self._model, Decoder):
            return self._model
        msg = f"{self.directory} classifies text, it does not generate: use `fedspine-edge infer`"
        raise WrongTaskError(msg)

    def _until_eos(self, tokens: Iterator[int]) -> Iterator[int]:
        ends = self.info.text.ends
        for token_id in tokens:
            if token_id in ends:
                return
            yield token_id

    def _pieces(self, prompt_ids: Sequence[int], ids: Iterator[int]) -> Iterator[str]:
        detokenizer = IncrementalDetokenizer(self._text.decode, prompt_ids)
        for token_id in ids:
            if piece := detokenizer.add(token_id):
                yield piece
        if piece := detokenizer.flush():
            yield piece


def _measure(repeat: Callable[[], object], num_repeats: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of each repeat after the warm-up."""
    times = []
    for _ in range(_WARM_UP_REPEATS + num_repeats):
        started = clock()
        repeat()
        times.append(clock() - started)
    return times[_WARM_UP_REPEATS:]


def _as_artifact(directory: Path, info: CompactInfo) -> Artifact:
    """The directory as an artifact with labels and tokenizer, without weights, for the engine's reader of examples."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        family=info.family,
        task=info.task,
        model_name=info.model_name,
        num_layers=1,
        hidden_size=0,
        block_prefixes=("",),
        word_embedding="embedding",
        post_norm=False,
        labels=info.labels,
        text=info.text,
        groups=(),
        tensors=(),
        targets=(),
        dense=(),
        files=info.files,
        producer={},
    )
    return Artifact(directory, manifest, info.artifact_digest)
